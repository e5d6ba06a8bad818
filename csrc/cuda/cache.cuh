// The cache's elements: where a head's rows begin, and conversions to and from float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "operands.h"

namespace adept::cuda {

// Elements in a load of 16 bytes.
template <class Element>
constexpr int kVector = 16 / sizeof(Element);

__device__ __forceinline__ void widen(const uint4& bits, float (&out)[4], const float*) {
  out[0] = __uint_as_float(bits.x);
  out[1] = __uint_as_float(bits.y);
  out[2] = __uint_as_float(bits.z);
  out[3] = __uint_as_float(bits.w);
}

__device__ __forceinline__ void widen(const uint4& bits, float (&out)[8], const __half*) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    __half2_raw pair;
    pair.x = static_cast<unsigned short>(words[i]);
    pair.y = static_cast<unsigned short>(words[i] >> 16);
    const float2 values = __half22float2(__half2(pair));
    out[2 * i] = values.x;
    out[2 * i + 1] = values.y;
  }
}

// A bfloat16 is the upper half of a float.
__device__ __forceinline__ void widen(const uint4& bits, float (&out)[8], const __nv_bfloat16*) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// 16 bytes of elements, as floats.
template <class Element>
__device__ __forceinline__ void widen(const uint4& bits, float (&out)[kVector<Element>]) {
  widen(bits, out, static_cast<const Element*>(nullptr));
}

// To nearest, ties to even, as torch rounds.
__device__ __forceinline__ void store_narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void store_narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ __forceinline__ void store_narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// The first element of the keys of a slot's head; its values begin `value_offset` elements later.
__device__ __forceinline__ int64_t head_offset(const CacheLayer& cache, int64_t slot, int64_t head) {
  return (slot * cache.heads + head) * cache.capacity * cache.head_dim;
}

__device__ __forceinline__ int64_t value_offset(const CacheLayer& cache) {
  return cache.slots * cache.heads * cache.capacity * cache.head_dim;
}

__device__ __forceinline__ bool in_range(int64_t index, int64_t end) { return index >= 0 && index < end; }

}  // namespace adept::cuda
