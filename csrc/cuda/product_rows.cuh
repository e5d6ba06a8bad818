// Four neighbouring elements of a row: loads, stores, and what turns the product of a GEMM into outputs.
#pragma once

#include <type_traits>

#include "cuda/formats.cuh"
#include "cuda/kernels.h"

namespace adept::cuda {

constexpr int kQuad = 4;

// A power of two and its inverse, so that the largest of a token's inputs times the inverse is at most 1. 2^-100 at
// least: smaller inputs become 0, as no float scales them up.
__device__ __forceinline__ PowerOfTwo power_above(float largest, int raised) {
  constexpr int kBias = 127, kLeast = -100, kMost = 126;
  const int exponent = static_cast<int>(bits_as<uint32_t>(largest) >> 23) - (kBias - 1);
  const int wanted = min(max(exponent + raised, kLeast), kMost);
  return {bits_as<float>(static_cast<uint32_t>(kBias + wanted) << 23),
          bits_as<float>(static_cast<uint32_t>(kBias - wanted) << 23)};
}

__device__ __forceinline__ float4 load_quad(const float* from) { return *reinterpret_cast<const float4*>(from); }

template <Format kFormat>
__device__ __forceinline__ float4 load_quad(const void* from, int64_t at) {
  if constexpr (kFormat == Format::kFloat32) {
    return load_quad(static_cast<const float*>(from) + at);
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(from) + at);
    const float2 low = Element<kFormat>::unpack(words.x), high = Element<kFormat>::unpack(words.y);
    return {low.x, low.y, high.x, high.y};
  }
}

// Rounded to nearest, ties to even, as torch rounds.
template <Format kFormat>
__device__ __forceinline__ void store_quad(void* to, int64_t at, const float4& v) {
  if constexpr (kFormat == Format::kFloat32) {
    *reinterpret_cast<float4*>(static_cast<float*>(to) + at) = v;
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(to) + at) = {Element<kFormat>::pack(v.x, v.y),
                                                                  Element<kFormat>::pack(v.z, v.w)};
  }
}

template <class Function>
__device__ __forceinline__ float4 map(const float4& a, const float4& b, Function function) {
  return {function(a.x, b.x), function(a.y, b.y), function(a.z, b.z), function(a.w, b.w)};
}

template <class Function>
__device__ __forceinline__ float4 map(const float4& a, Function function) {
  return {function(a.x), function(a.y), function(a.z), function(a.w)};
}

__device__ __forceinline__ float plus(float a, float b) { return a + b; }
__device__ __forceinline__ float times(float a, float b) { return a * b; }
// A NaN stays one. The square is rounded, though a sum may follow.
__device__ __forceinline__ float relu_squared(float a) { return a < 0 ? 0 : __fmul_rn(a, a); }

// Outputs from column `col` on: sums of products, times the scales of outputs and the token's power of two, plus bias.
__device__ __forceinline__ float4 finish_quad(const Product& product, const float4& sums, float power, int col) {
  float4 v = sums;
  if (product.scales != nullptr) v = map(v, load_quad(product.scales + col), times);
  v = map(v, [power](float a) { return a * power; });
  if (product.bias != nullptr) v = map(v, load_quad(product.bias + col), plus);
  return v;
}

}  // namespace adept::cuda
