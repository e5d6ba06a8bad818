// How 16 bytes of weights become operands of the tensor cores, or floats, in each format.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "cuda/ptx.cuh"
#include "operands.h"

namespace adept::cuda {

template <class To, class From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The dtype in which the tensor cores multiply: bfloat16 for weights in bfloat16, for all others float16.
template <Format kFormat>
struct Element {
  // Whether inputs have to be scaled by a power of two to fit.
  static constexpr bool kNarrow = true;
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    return bits_as<uint32_t>(__floats2half2_rn(first, second));
  }
  static __device__ __forceinline__ float2 unpack(uint32_t pair) { return __half22float2(bits_as<__half2>(pair)); }
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add_f16(d, a, b);
  }
};

template <>
struct Element<Format::kBFloat16> {
  static constexpr bool kNarrow = false;
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    return bits_as<uint32_t>(__floats2bfloat162_rn(first, second));
  }
  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return __bfloat1622float2(bits_as<__nv_bfloat162>(pair));
  }
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add_bf16(d, a, b);
  }
};

// Bits kShift to kShift + 3 of both halves of a word, each minus 8, exactly, in float16. 0x6400 is 1024, whose lowest
// mantissa bit is worth 1: a nibble in the lowest bits adds its value, one 4 bits higher 16 times its value.
template <int kShift>
__device__ __forceinline__ uint32_t widen_nibbles(uint32_t word) {
  const uint32_t shifted = kShift < 8 ? word : word >> 8;
  if constexpr (kShift % 8 == 0) {
    const uint32_t biased = mask_and_set<0x000f000f, 0x64006400>(shifted);
    return bits_as<uint32_t>(__hsub2(bits_as<__half2>(biased), __float2half2_rn(1024 + 8)));
  } else {
    const uint32_t biased = mask_and_set<0x00f000f0, 0x64006400>(shifted);
    return bits_as<uint32_t>(
        __hfma2(bits_as<__half2>(biased), __float2half2_rn(1.0f / 16), __float2half2_rn(-(1024.0f / 16 + 8))));
  }
}

__device__ __forceinline__ uint32_t widen_nibbles(uint32_t word, int pair) {
  return pair == 0   ? widen_nibbles<0>(word)
         : pair == 1 ? widen_nibbles<4>(word)
         : pair == 2 ? widen_nibbles<8>(word)
                     : widen_nibbles<12>(word);
}

// Two int8, a half of `word`, in float16, exactly: 0x6400 is 1024, and the last byte is added to it.
__device__ __forceinline__ uint32_t widen_int8(uint32_t word, int half) {
  const uint32_t biased = __byte_perm(word ^ 0x80808080, 0x64646464, half == 0 ? 0x4140 : 0x4342);
  return bits_as<uint32_t>(__hsub2(bits_as<__half2>(biased), __float2half2_rn(1024 + 128)));
}

// `along`: the i-th pair of neighbours in 16 bytes of a row, a register with the first weight in the low half.
template <Format kFormat>
struct Weights {
  static constexpr int kBits = 16;
  static __device__ __forceinline__ uint32_t along(const uint4& load, int i) { return word_of(load, i); }
};

template <>
struct Weights<Format::kInt8> {
  static constexpr int kBits = 8;
  static __device__ __forceinline__ uint32_t along(const uint4& load, int i) {
    return widen_int8(word_of(load, i / 2), i % 2);
  }
};

template <>
struct Weights<Format::kFloat8> {
  static constexpr int kBits = 8;
  static __device__ __forceinline__ uint32_t along(const uint4& load, int i) {
    return widen_e4m3(word_of(load, i / 2) >> (i % 2 * 16));
  }
};

template <>
struct Weights<Format::kInt4G128> {
  static constexpr int kBits = 4;
  static __device__ __forceinline__ uint32_t along(const uint4& load, int i) {
    return widen_nibbles(word_of(load, i / 4), i % 4);
  }
};

template <>
struct Weights<Format::kInt4G32> : Weights<Format::kInt4G128> {};

template <Format kFormat>
constexpr int kPerLoad = 128 / Weights<kFormat>::kBits;  // weights in 16 bytes

// The weights of a row that share a scale; 0 in other formats than those of 4 bits.
template <Format kFormat>
constexpr int kGroup = static_cast<int>(kFormat == Format::kInt4G32    ? kGroupSize32
                                        : kFormat == Format::kInt4G128 ? kGroupSize128
                                                                       : 0);
static_assert(kGroup<Format::kInt4G32> == kPerLoad<Format::kInt4G32>, "a load has weights of one group");

// Columns in memory; in 4 bits they are padded to whole groups.
template <Format kFormat>
__device__ constexpr int stored_cols_of(int64_t cols) {
  constexpr int kMultiple = kGroup<kFormat> == 0 ? 1 : kGroup<kFormat>;
  return (static_cast<int>(cols) + kMultiple - 1) / kMultiple * kMultiple;
}

// Two weights times two scales, rounded to float16.
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, uint32_t scales) {
  return bits_as<uint32_t>(__hmul2(bits_as<__half2>(pair), bits_as<__half2>(scales)));
}

// The addresses of the rows of a matrix.
template <Format kFormat>
struct Rows {
  explicit __device__ Rows(const Matrix& w)
      : values(static_cast<const uint8_t*>(w.values)),
        stored_cols(stored_cols_of<kFormat>(w.cols)),
        row_bytes(stored_cols * Weights<kFormat>::kBits / 8) {}

  const uint8_t* values;
  int stored_cols;  // a multiple of 8
  int row_bytes;

  // The weights of row `row` from column `col` on, a multiple of kPerLoad. Past the row's end, other weights of the row
  // are returned, so the inputs there must be 0.
  __device__ __forceinline__ uint4 load(int row, int col) const {
    const uint8_t* const begin = values + int64_t{row} * row_bytes;
    if (Weights<kFormat>::kBits == 8 && row_bytes % 16 != 0) {
      const uint2 low = load_once_8(begin + (col < stored_cols ? col : 0));
      const uint2 high = load_once_8(begin + (col + 8 < stored_cols ? col + 8 : 0));
      return {low.x, low.y, high.x, high.y};
    }
    return load_once(begin + (col < stored_cols ? col : 0) * Weights<kFormat>::kBits / 8);
  }
};

// A power of two and its inverse.
struct PowerOfTwo {
  float value;
  float inverse;
};

// Scales `largest`, 0 or more, into [2^14, 2^15): below float16's maximum and far above its subnormals.
__device__ __forceinline__ PowerOfTwo scale_to_float16(float largest) {
  const int exponent = static_cast<int>(bits_as<uint32_t>(largest) >> 23);
  const int infinity = 255, bias = 127;
  const int wanted = exponent == infinity ? bias : min(max(bias + 14 + bias - exponent, 1), 2 * bias - 1);
  return {bits_as<float>(static_cast<uint32_t>(wanted) << 23),
          bits_as<float>(static_cast<uint32_t>(2 * bias - wanted) << 23)};
}

}  // namespace adept::cuda
