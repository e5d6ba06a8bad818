// The inputs of a product with weights: normalised, padded and, for quantised weights, in 16-bit fixed point.
//
// A fixed-point input is 256 * high + low, a byte each, so a product with 4- or 8-bit weights is two byte products,
// accumulated exactly in 32 bits. Its step is 2^-15 of a token's largest input: finer than bfloat16 for inputs down to
// 2^-7 of the largest.
#pragma once

#include <limits>

#include <cmath>

#include "kernels.h"
#include "threads.h"
#include "workspace.h"

namespace adept::ADEPT_ISA {

constexpr int64_t kTokensPerTask = 16;  // a decode step's few tokens are prepared by the calling thread alone
constexpr float kFixedPointMax = 127 * 256;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Calls each(column, lanes) for every 16 columns; lanes < 16 only at the end.
template <class Each>
inline void for_columns(int64_t columns, const Each& each) {
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) each(column, kLanes);
  if (column < columns) each(column, int(columns - column));
}

// out may be x.
inline void layernorm(const float* x, int64_t columns, const Norm& norm, float* out) {
  F32x16 total = broadcast(0.0f);
  for_columns(columns, [&](int64_t c, int lanes) { total = add(total, load_first(x + c, lanes)); });
  const float mean = sum(total) / float(columns);
  F32x16 squares = broadcast(0.0f);
  for_columns(columns, [&](int64_t c, int lanes) {
    // Lanes past the end count as the mean.
    F32x16 deviation = sub(load_first(x + c, lanes), broadcast(mean));
    if (lanes < kLanes) {
      float tail[kLanes] = {};
      store_first(tail, deviation, lanes);
      deviation = load(tail);
    }
    squares = fma(deviation, deviation, squares);
  });
  const float scale = 1.0f / std::sqrt(sum(squares) / float(columns) + norm.eps);
  for_columns(columns, [&](int64_t c, int lanes) {
    const F32x16 unit = mul(sub(load_first(x + c, lanes), broadcast(mean)), broadcast(scale));
    const F32x16 shifted = fma(unit, load_first(norm.gamma + c, lanes), load_first(norm.beta + c, lanes));
    store_first(out + c, shifted, lanes);
  });
}

// 256 * high + low, with low from -128 to 127.
inline I32x16 high_byte(I32x16 value) { return shift_right_8(add(value, broadcast(128))); }

inline void split(I32x16 value, int8_t* high, int8_t* low) {
  store_bytes(high, high_byte(value));
  store_bytes(low, value);
}

// Float inputs, [tokens, stride]; zeros from `columns` to the next multiple of 16.
class FloatInputs {
 public:
  FloatInputs(const Threads& threads, const float* x, int64_t tokens, int64_t columns, const Norm& norm)
      : stride(round_up(columns, kLanes)), values_(tokens * stride) {
    parallel_pieces(threads, tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const float* from = x + token * columns;
        float* to = values_ + token * stride;
        if (norm.gamma)
          layernorm(from, columns, norm, to);
        else
          std::memcpy(to, from, size_t(columns) * sizeof(float));
        std::fill(to + columns, to + stride, 0.0f);
      }
    });
  }

  const float* token(int64_t index) const { return values_.data() + index * stride; }

  const int64_t stride;

 private:
  Buffer<float> values_;
};

// Fixed-point inputs; zeros from `columns` to the next multiple of kTiledColumns.
class FixedInputs {
 public:
  FixedInputs(const Threads& threads, const float* x, int64_t tokens, int64_t columns, const Norm& norm)
      // Padded by a cache line, so that tokens do not compete for the same lines of the first-level cache.
      : stride(round_up(columns, kTiledColumns) + kCacheLine),
        groups(round_up(columns, kTiledColumns) / kGroupSize32),
        high_(tokens * stride),
        low_(tokens * stride),
        scales_(tokens),
        group_sums_(tokens * groups),
        sums_(2 * tokens) {
    parallel_pieces(threads, tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
      Buffer<float> row(groups * kGroupSize32);
      for (int64_t token = begin; token < end; ++token) {
        if (norm.gamma)
          layernorm(x + token * columns, columns, norm, row);
        else
          std::memcpy(row, x + token * columns, size_t(columns) * sizeof(float));
        std::fill(row + columns, row + groups * kGroupSize32, 0.0f);
        quantize(row, token);
      }
    });
  }

  const int8_t* high(int64_t token) const { return high_.data() + token * stride; }
  const int8_t* low(int64_t token) const { return low_.data() + token * stride; }
  float scale(int64_t token) const { return scales_.data()[token]; }
  // Sums of 256 * high + low over each 32 inputs.
  const int32_t* group_sums(int64_t token) const { return group_sums_.data() + token * groups; }
  int32_t sum_of_high(int64_t token) const { return sums_.data()[2 * token]; }
  int32_t sum_of_low(int64_t token) const { return sums_.data()[2 * token + 1]; }

  const int64_t stride;
  const int64_t groups;

 private:
  void quantize(const float* row, int64_t token) {
    F32x16 extreme = broadcast(0.0f), taint = broadcast(0.0f);
    for (int64_t c = 0; c < groups * kGroupSize32; c += kLanes) {
      const F32x16 value = load(row + c);
      extreme = max(abs(value), extreme);
      taint = fma(value, broadcast(0.0f), taint);  // NaN once anything is not finite
    }
    const float scale = largest(extreme) / kFixedPointMax + sum(taint);
    scales_[token] = scale;
    const F32x16 inverse = broadcast(scale > std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f);
    int8_t* high = high_ + token * stride;
    int8_t* low = low_ + token * stride;
    int32_t sum_high = 0, sum_low = 0;
    for (int64_t group = 0; group < groups; ++group) {
      int32_t group_high = 0, group_low = 0;
      for (int64_t c = group * kGroupSize32; c < (group + 1) * kGroupSize32; c += kLanes)
        split(to_int(mul(load(row + c), inverse)), high + c, low + c);
      for (int64_t c = group * kGroupSize32; c < (group + 1) * kGroupSize32; ++c) {
        group_high += high[c];
        group_low += low[c];
      }
      group_sums_[token * groups + group] = 256 * group_high + group_low;
      sum_high += group_high;
      sum_low += group_low;
    }
    sums_[2 * token] = sum_high;
    sums_[2 * token + 1] = sum_low;
  }

  Buffer<int8_t> high_, low_;
  Buffer<float> scales_;
  Buffer<int32_t> group_sums_;
  Buffer<int32_t> sums_;
};

}  // namespace adept::ADEPT_ISA
