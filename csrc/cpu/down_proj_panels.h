// The down-projection for many tokens, with the bits of the loops for a few (sparse_down_proj.h).
//
// Layout: a task is a panel of 64 or 128 columns. It goes over the parts of the list of active neurons; the panel of
// one part stays in the second-level cache while all tokens use it, a few tokens at a time in registers. Packed rows
// are interleaved once for all tokens. A token's sum of a part is 0 at first and adds the part's neurons in order, and
// the parts' sums are added in order. Limit: the multiply-adds.
#pragma once

#include "sparse_down_proj.h"
#include "sparse_down_proj_int4.h"

namespace adept::ADEPT_ISA {

constexpr int64_t kManyTokens = 12;  // from here on panels are faster

#if defined(__AVX512F__)
constexpr int kPanelVectors = 4, kPanelTokens = 6;  // 24 sums
constexpr int kPackedPanelTokens = 3;               // 24 sums, of high and low bytes
#else
constexpr int kPanelVectors = 2, kPanelTokens = 2;
constexpr int kPackedPanelTokens = 1;
#endif

constexpr int64_t kPanelColumns = kPanelVectors * kLanes;

// Adds the neurons' sums of a panel, [neurons, kPanelColumns], to sums: [tokens, kPanelColumns].
template <int Tokens>
inline void add_panel(const float* panel, int64_t neurons, const float* const (&activations)[Tokens], float* sums) {
  F32x16 of_part[Tokens][kPanelVectors];
#pragma GCC unroll 16
  for (auto& of_token : of_part)
#pragma GCC unroll 16
    for (F32x16& value : of_token) value = broadcast(0.0f);
  for (int64_t i = 0; i < neurons; ++i) {
    F32x16 weights[kPanelVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kPanelVectors; ++v) weights[v] = load(panel + i * kPanelColumns + v * kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
      const F32x16 activation = broadcast(activations[t][i]);
#pragma GCC unroll 16
      for (int v = 0; v < kPanelVectors; ++v) of_part[t][v] = fma(weights[v], activation, of_part[t][v]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < kPanelVectors; ++v) {
      float* to = sums + t * kPanelColumns + v * kLanes;
      store(to, add(load(to), of_part[t][v]));
    }
}

// Calls emit(token, column, lanes, sum).
template <class Weight, class Emit>
void float_panels(const Threads& threads, const Matrix& w, const ActiveNeurons& active, const Emit& emit) {
  const int64_t tokens = active.tokens();
  parallel_pieces(threads, w.cols, kPanelColumns, [&](int64_t begin, int64_t end) {
    Buffer<float> panel(active.part_rows() * kPanelColumns), sums(tokens * kPanelColumns);
    std::fill(panel + 0, panel + active.part_rows() * kPanelColumns, 0.0f);
    for (int64_t c = begin; c < end; c += kPanelColumns) {
      const int64_t columns = std::min(kPanelColumns, end - c);
      std::fill(sums + 0, sums + tokens * kPanelColumns, 0.0f);
      for (int64_t p = 0; p < active.parts(); ++p) {
        const ActiveNeurons::Part& part = active.part(p);
        const int64_t neurons = part.end - part.begin;
        for (int64_t i = 0; i < neurons; ++i) {
          const Weight* row = static_cast<const Weight*>(w.values) + active.row(part.begin + i) * w.cols + c;
          for_columns(columns, [&](int64_t at, int lanes) {
            store(panel + i * kPanelColumns + at, lanes == kLanes ? load(row + at) : load_first(row + at, lanes));
          });
        }
        for_blocks<kPanelTokens>(0, tokens, [&](int64_t token, auto count) {
          const float* activations[decltype(count)::value];
          for (const float*& of_token : activations) of_token = active.activations(token++) + part.begin;
          add_panel(panel, neurons, activations, sums + (token - count) * kPanelColumns);
        });
      }
      for (int64_t token = 0; token < tokens; ++token)
        for_columns(columns, [&](int64_t at, int lanes) {
          emit(token, c + at, lanes, load(sums + token * kPanelColumns + at));
        });
    }
  });
}

// The rows of a part as bytes of 64 columns, four rows side by side: [quads, 4, 64 bytes]. `bytes_of(row)` has those of
// a row of the matrix.
template <class BytesOf>
inline void interleave_part(const ActiveNeurons& active, const ActiveNeurons::Part& part, const BytesOf& bytes_of,
                            uint8_t* to) {
  for (int64_t i = part.begin; i < part.end; i += kQuad) {
    U8x64 rows[kQuad];
#pragma GCC unroll 16
    for (int r = 0; r < kQuad; ++r) rows[r] = bytes_of(active.row(i + r));
    interleave4(rows);
#pragma GCC unroll 16
    for (int v = 0; v < kQuad; ++v) store(to + ((i - part.begin) + v) * kCacheLine, rows[v]);
  }
}

// Calls emit(token, column, lanes, high, low).
template <class Emit>
void int8_panels(const Threads& threads, const Matrix& w, int64_t stride, const ActiveNeurons& active,
                 const FixedActivations& activations, const Emit& emit) {
  constexpr int64_t kColumns = kCacheLine;
  const auto* values = static_cast<const int8_t*>(w.values);
  const int64_t tokens = active.tokens();
  parallel_pieces(threads, w.cols, kColumns, [&](int64_t begin, int64_t end) {
    Buffer<uint8_t> panel(active.part_rows() * kColumns);
    Buffer<int32_t> sums(tokens * 2 * kColumns);  // [tokens, high and low, columns]
    for (int64_t c = begin; c < end; c += kColumns) {
      for (int64_t p = 0; p < active.parts(); ++p) {
        const ActiveNeurons::Part& part = active.part(p);
        interleave_part(active, part, [&](int64_t row) { return load_bytes(values + row * stride + c); }, panel);
        for_blocks<kPackedPanelTokens>(0, tokens, [&](int64_t token, auto count) {
          constexpr int kTokens = decltype(count)::value;
          int32_t* to = sums + token * 2 * kColumns;
          ColumnSums<kTokens> block(p == 0 ? nullptr : to, kColumns);
          for (int64_t i = part.begin; i < part.end; i += kQuad) {
            const uint8_t* at = panel + (i - part.begin) * kCacheLine;
            const U8x64 rows[kQuad] = {load_bytes(at), load_bytes(at + kCacheLine), load_bytes(at + 2 * kCacheLine),
                                       load_bytes(at + 3 * kCacheLine)};
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) {
              const U8x64 high = broadcast4(activations.high(token + t, i));
              const U8x64 low = broadcast4(activations.low(token + t, i));
#pragma GCC unroll 16
              for (int v = 0; v < 4; ++v) {
                block.high[t][v] = dot4(block.high[t][v], high, rows[v]);
                block.low[t][v] = dot4(block.low[t][v], low, rows[v]);
              }
            }
          }
          block.store_to(to, kColumns);
        });
      }
      for (int64_t token = 0; token < tokens; ++token)
        for (int64_t at = 0; at < std::min(kColumns, end - c); at += kLanes) {
          const int32_t* of_token = sums + token * 2 * kColumns + at;
          emit(token, c + at, int(std::min<int64_t>(kLanes, end - c - at)), load(of_token), load(of_token + kColumns));
        }
    }
  });
}

// As ScaledActivations has them, for the groups of one panel and one token at a time: the neurons of a part side by
// side.
class PanelActivations {
 public:
  static constexpr int kGroups = 4;  // of 32 columns in a panel

  explicit PanelActivations(int64_t part_rows)
      : scales_(kGroups * part_rows),
        products_(part_rows),
        stride_(part_rows),
        high_(kPackedPanelTokens * kGroups * part_rows),
        low_(kPackedPanelTokens * kGroups * part_rows) {}

  // `scales`: of the panel's first group; only the first `groups` exist.
  void begin_part(const Half* scales, int64_t row_groups, int groups, const ActiveNeurons& active,
                  const ActiveNeurons::Part& part) {
    part_ = part;
    count_ = round_up(part.end - part.begin, kLanes);
    for (int64_t i = 0; i < count_; ++i) {
      float of_row[kLanes];
      store(of_row, load_first(scales + active.row(part.begin + i) * row_groups, groups));
      for (int group = 0; group < kGroups; ++group) scales_[group * stride_ + i] = of_row[group];
    }
  }

  // Of the token that is in place `t` of its block.
  void scale(const float* activations, int t) {
    for (int group = 0; group < kGroups; ++group) {
      const float* scales = scales_ + group * stride_;
      F32x16 extreme = broadcast(0.0f), taint = broadcast(0.0f);
      for (int64_t i = 0; i < count_; i += kLanes) {
        const F32x16 value = mul(load(scales + i), load(activations + part_.begin + i));
        extreme = max(abs(value), extreme);
        taint = fma(value, broadcast(0.0f), taint);
        store(products_ + i, value);
      }
      const float step = std::fma(largest(extreme), 1 / kFixedPointMax, sum(taint));
      const F32x16 inverse = broadcast(step > std::numeric_limits<float>::min() ? 1 / step : 0.0f);
      I32x16 sums = zero_i32();
      for (int64_t i = 0; i < count_; i += kLanes) {
        const I32x16 whole = to_int(max(mul(load(products_ + i), inverse), broadcast(-kFixedPointMax)));
        const int64_t at = (t * kGroups + group) * stride_ + i;
        store_bytes(high_ + at, high_byte(whole));
        store_bytes(low_ + at, whole);
        sums = add(sums, whole);
      }
      int32_t lanes[kLanes];
      store(lanes, sums);
      steps_[t][group] = step;
      sums_[t][group] = 0;
      for (int32_t lane : lanes) sums_[t][group] += lane;
    }
  }

  // Of four neurons of the part, from `index` on.
  U8x64 high(int t, int group, int64_t index) const {
    return broadcast4(high_.data() + (t * kGroups + group) * stride_ + index);
  }
  U8x64 low(int t, int group, int64_t index) const {
    return broadcast4(low_.data() + (t * kGroups + group) * stride_ + index);
  }
  float step(int t, int group) const { return steps_[t][group]; }
  int32_t sum_of(int t, int group) const { return sums_[t][group]; }

 private:
  Buffer<float> scales_, products_;
  int64_t stride_;
  Buffer<int8_t> high_, low_;  // [tokens, groups, neurons]
  ActiveNeurons::Part part_ = {};
  int64_t count_ = 0;
  float steps_[kPackedPanelTokens][kGroups];
  int32_t sums_[kPackedPanelTokens][kGroups];
};

// Adds a part's sums of 64 columns, groups `first_group` and the next, to sums: [tokens, sums_stride].
template <int Tokens>
inline void add_int4_part(const uint8_t* panel, int64_t neurons, const PanelActivations& activations, int first_group,
                          float* sums, int64_t sums_stride) {
  ColumnSums<Tokens> block(nullptr, 0);
  for (int64_t i = 0; i < neurons; i += kQuad) {
    const uint8_t* at = panel + i * kCacheLine;
    const U8x64 rows[kQuad] = {load_bytes(at), load_bytes(at + kCacheLine), load_bytes(at + 2 * kCacheLine),
                               load_bytes(at + 3 * kCacheLine)};
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 16
      for (int group = 0; group < 2; ++group) {
        const U8x64 high = activations.high(t, first_group + group, i);
        const U8x64 low = activations.low(t, first_group + group, i);
#pragma GCC unroll 16
        for (int v = 2 * group; v < 2 * group + 2; ++v) {
          block.high[t][v] = dot4_small(block.high[t][v], rows[v], high);
          block.low[t][v] = dot4_small(block.low[t][v], rows[v], low);
        }
      }
  }
#pragma GCC unroll 16
  for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 16
    for (int v = 0; v < 4; ++v) {
      const int group = first_group + v / 2;
      const I32x16 low = add(block.low[t][v], broadcast(-8 * activations.sum_of(t, group)));
      const F32x16 total = fma(to_float(block.high[t][v]), broadcast(256.0f), to_float(low));
      float* to = sums + t * sums_stride + v * kLanes;
      store(to, add(load(to), mul(total, broadcast(activations.step(t, group)))));
    }
}

// Calls emit(token, column, lanes, sum).
template <class Emit>
void int4_panels(const Threads& threads, const Matrix& w, int64_t stride, const ActiveNeurons& active,
                 const Emit& emit) {
  constexpr int64_t kColumns = 2 * kCacheLine;
  const auto* values = static_cast<const uint8_t*>(w.values);
  const int64_t tokens = active.tokens(), row_groups = stride / kGroupSize32;
  parallel_pieces(threads, w.cols, kColumns, [&](int64_t begin, int64_t end) {
    Buffer<uint8_t> panel(2 * active.part_rows() * kCacheLine);  // low nibbles' columns, then high nibbles'
    Buffer<float> sums(tokens * kColumns);
    PanelActivations activations(active.part_rows());
    for (int64_t c = begin; c < end; c += kColumns) {
      std::fill(sums + 0, sums + tokens * kColumns, 0.0f);
      for (int64_t p = 0; p < active.parts(); ++p) {
        const ActiveNeurons::Part& part = active.part(p);
        uint8_t* upper = panel + active.part_rows() * kCacheLine;
        const auto row_bytes = [&](int64_t row) { return load_bytes(values + (row * stride + c) / 2); };
        interleave_part(active, part, [&](int64_t row) { return low_nibbles(row_bytes(row)); }, panel);
        interleave_part(active, part, [&](int64_t row) { return high_nibbles(row_bytes(row)); }, upper);
        const auto* scales = static_cast<const Half*>(w.scales) + c / kGroupSize32;
        activations.begin_part(scales, row_groups, PanelActivations::kGroups, active, part);
        for_blocks<kPackedPanelTokens>(0, tokens, [&](int64_t token, auto count) {
          constexpr int kTokens = decltype(count)::value;
          for (int t = 0; t < kTokens; ++t) activations.scale(active.activations(token + t), t);
          float* to = sums + token * kColumns;
          const int64_t neurons = part.end - part.begin;
          add_int4_part<kTokens>(panel, neurons, activations, 0, to, kColumns);
          add_int4_part<kTokens>(upper, neurons, activations, 2, to + kCacheLine, kColumns);
        });
      }
      const int64_t columns = std::min(kColumns, end - c);
      for (int64_t token = 0; token < tokens; ++token)
        for (int64_t at = 0; at < columns; at += kLanes)
          emit(token, c + at, int(std::min<int64_t>(kLanes, columns - at)), load(sums + token * kColumns + at));
    }
  });
}

}  // namespace adept::ADEPT_ISA
