// The vector types of the kernels, the same on every machine: 16 floats, 16 integers, 64 bytes.
//
// AVX-512 holds one in a register, AVX2 in two, and the portable version in an array. simd_portable.h defines each
// operation; the other two files implement it in intrinsics. Every file of kernels is compiled once for each
// instruction set, in the namespace that ADEPT_ISA names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef ADEPT_ISA
#error "compile with -DADEPT_ISA=portable, avx2, avx512 or avx512_vnni"
#endif

namespace adept {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

constexpr int kLanes = 16;
constexpr int kCacheLine = 64;

}  // namespace adept

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace adept::ADEPT_ISA {

inline void store(void* to, U8x64 value) { std::memcpy(to, &value, sizeof value); }

// To the second-level cache.
template <class T>
inline void prefetch(const T* address) {
  __builtin_prefetch(address, 0, 2);
}

// How far ahead of a stream its next lines are fetched into the second-level cache.
constexpr int64_t kStreamAhead = 1024;

// Prefetches ahead of a stream that has reached `address`, as the hardware stops at the ends of pages and starts late.
// `ahead`: the same, or so much further that the stream's next lines are kStreamAhead bytes from there.
template <class T>
inline void prefetch_stream(const T* address, const T* ahead) {
  __builtin_prefetch(reinterpret_cast<const char*>(address) + 256, 0, 3);
  __builtin_prefetch(reinterpret_cast<const char*>(ahead) + kStreamAhead, 0, 2);
}

template <class T>
inline void prefetch_stream(const T* address) {
  prefetch_stream(address, address);
}

// e^x for x <= 0, within 2 ulp; 0 below -87: Cody and Waite's reduction, then the polynomial of Cephes' expf.
inline F32x16 exp_nonpositive(F32x16 x) {
  const F32x16 clamped = max(x, broadcast(-87.0f));
  const F32x16 n = round(mul(clamped, broadcast(1.44269504088896341f)));
  F32x16 r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, broadcast(1.0f)));
  return zero_where_less(x, broadcast(-87.0f), scale_by_power_of_two(p, n));
}

}  // namespace adept::ADEPT_ISA
