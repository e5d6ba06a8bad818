// The loop of the sparse down-projection for 4-bit weights.
//
// Scales run along a row, one for each 32 columns, so a skipped row costs no scales either. Rows of different scales
// cannot share an integer sum. So each activation is multiplied by its row's scale of a group of columns, and these
// products are converted to fixed point, with one step size for each group: activation * scale * (Q - 8).
#pragma once

#include "sparse_down_proj.h"

namespace adept::ADEPT_ISA {

// For one task: activations[i] * scale[row i, group] as 256 * high + low, the bytes of four neurons side by side.
class ScaledActivations {
 public:
  ScaledActivations(const Half* scales, int64_t row_groups, const ActiveNeurons& active,
                    const DownProjTasks::Task& task)
      : groups((task.last_column - task.first_column) / kGroupSize32),
        stride_(round_up(groups, kLanes)),
        quads_((task.end - task.begin) / 4),
        high_(active.tokens() * quads_ * stride_),
        low_(active.tokens() * quads_ * stride_),
        steps_(active.tokens() * stride_),
        sums_(active.tokens() * stride_) {
    const Half* from = scales + task.first_column / kGroupSize32;
    for (int64_t token = 0; token < active.tokens(); ++token)
      for (int64_t group = 0; group < groups; group += kLanes)
        scale(from + group, row_groups, int(std::min<int64_t>(kLanes, groups - group)), active, task, token, group);
  }

  const int32_t* high(int64_t token, int64_t quad) const { return high_.data() + (token * quads_ + quad) * stride_; }
  const int32_t* low(int64_t token, int64_t quad) const { return low_.data() + (token * quads_ + quad) * stride_; }
  float step(int64_t token, int64_t group) const { return steps_.data()[token * stride_ + group]; }
  int32_t sum(int64_t token, int64_t group) const { return sums_.data()[token * stride_ + group]; }

  const int64_t groups;

 private:
  // 16 groups of columns; only the first `lanes` exist.
  void scale(const Half* scales, int64_t row_groups, int lanes, const ActiveNeurons& active,
             const DownProjTasks::Task& task, int64_t token, int64_t group) {
    const int64_t count = task.end - task.begin;
    Buffer<float> products(count * kLanes);
    F32x16 extreme = broadcast(0.0f), taint = broadcast(0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const Half* row = scales + active.row(task.begin + i) * row_groups;
      const F32x16 steps = lanes == kLanes ? load(row) : load_first(row, lanes);
      const F32x16 value = mul(steps, broadcast(active.activations(token)[task.begin + i]));
      extreme = max(abs(value), extreme);
      taint = fma(value, broadcast(0.0f), taint);  // NaN once anything is not finite
      store(products + i * kLanes, value);
    }
    float steps[kLanes], inverses[kLanes];
    store(steps, fma(extreme, broadcast(1 / kFixedPointMax), taint));
    for (int i = 0; i < kLanes; ++i) inverses[i] = steps[i] > std::numeric_limits<float>::min() ? 1 / steps[i] : 0;
    std::memcpy(steps_ + token * stride_ + group, steps, sizeof steps);
    const F32x16 inverse = load(inverses);
    I32x16 sums = zero_i32();
    for (int64_t quad = 0; quad < quads_; ++quad) {
      I32x16 upper[4], lower[4];
#pragma GCC unroll 16
      for (int i = 0; i < 4; ++i) {
        // The maximum removes a NaN, which the step has already.
        const F32x16 value = mul(load(products + (4 * quad + i) * kLanes), inverse);
        lower[i] = to_int(max(value, broadcast(-kFixedPointMax)));
        upper[i] = high_byte(lower[i]);
        sums = add(sums, lower[i]);
      }
      const int64_t at = (token * quads_ + quad) * stride_ + group;
      store(high_ + at, pack_bytes(upper));
      store(low_ + at, pack_bytes(lower));
    }
    store(sums_ + token * stride_ + group, sums);
  }

  int64_t stride_, quads_;
  Buffer<int32_t> high_, low_;
  Buffer<float> steps_;
  Buffer<int32_t> sums_;
};

// Adds a block of rows to sums of 64 columns, two groups; `nibbles` extracts them from a cache line.
template <int Tokens, class Nibbles>
inline void add_block(const RowPointers<uint8_t>& at, int64_t offset, const Nibbles& nibbles,
                      const ScaledActivations& activations, int64_t token, int64_t quad, int64_t group,
                      ColumnSums<Tokens>& sums) {
  for (int64_t i = 0; i < at.count; i += 4) {
    U8x64 columns[4];
#pragma GCC unroll 16
    for (int r = 0; r < 4; ++r) columns[r] = nibbles(load_bytes(at.rows[i + r] + offset));
    interleave4(columns);
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
      const int32_t* high = activations.high(token + t, quad + i / 4) + group;
      const int32_t* low = activations.low(token + t, quad + i / 4) + group;
      const U8x64 activations_high[2] = {broadcast4(high), broadcast4(high + 1)};
      const U8x64 activations_low[2] = {broadcast4(low), broadcast4(low + 1)};
#pragma GCC unroll 16
      for (int v = 0; v < 4; ++v) {
        sums.high[t][v] = dot4_small(sums.high[t][v], columns[v], activations_high[v / 2]);
        sums.low[t][v] = dot4_small(sums.low[t][v], columns[v], activations_low[v / 2]);
      }
    }
  }
}

// sums: float [tokens, sums_stride], set for the task's columns. row_bytes: the padded width of a row.
inline void add_int4_rows(const uint8_t* w, int64_t row_bytes, const ActiveNeurons& active,
                          const ScaledActivations& activations, const DownProjTasks::Task& task, float* sums,
                          int64_t sums_stride) {
  constexpr int64_t kBlock = 128;  // columns in 64 bytes of a row
  const int64_t columns = task.last_column - task.first_column, tokens = active.tokens();
  Buffer<int32_t> whole(2 * tokens * columns);  // [tokens, high and low, columns]
  const uint8_t* first = w + task.first_column / 2;
  const int64_t step = block_rows(task.end - task.begin);
  for (int64_t index = task.begin; index < task.end; index += step) {
    const RowPointers<uint8_t> at(first, row_bytes, active, index, std::min(index + step, task.end));
    const int64_t quad = (index - task.begin) / 4;
    for (int64_t c = 0; c < columns; c += kBlock) {
      at.prefetch_next(c / 2);
      const auto add_half = [&](auto nibbles, int64_t half) {
        for_blocks<kBlockTokens>(0, tokens, [&](int64_t token, auto token_count) {
          int32_t* to = whole + 2 * token * columns + c + half * kCacheLine;
          ColumnSums<decltype(token_count)::value> block(index == task.begin ? nullptr : to, columns);
          add_block(at, c / 2, nibbles, activations, token, quad, c / kGroupSize32 + half * (kCacheLine / kGroupSize32),
                    block);
          block.store_to(to, columns);
        });
      };
      add_half([](U8x64 bytes) { return low_nibbles(bytes); }, 0);
      add_half([](U8x64 bytes) { return high_nibbles(bytes); }, 1);
    }
  }
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t group = c / kGroupSize32;
      const I32x16 low =
          add(load(whole + (2 * token + 1) * columns + c), broadcast(-8 * activations.sum(token, group)));
      const F32x16 total = fma(to_float(load(whole + 2 * token * columns + c)), broadcast(256.0f), to_float(low));
      store(sums + token * sums_stride + task.first_column + c, mul(total, broadcast(activations.step(token, group))));
    }
}

}  // namespace adept::ADEPT_ISA
