// What the toolkit's headers for 16-bit floats leave to the device's compiler: fused multiply-add. Templates, so that
// a toolkit whose headers do have it takes precedence.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <type_traits>

namespace cuda_on_cpu {

// In float64 the product is exact, so the sum is as good as rounded once.
inline double widened(__half x) { return __half2float(x); }
inline double widened(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __half narrowed(double x, __half) { return __double2half(x); }
inline __nv_bfloat16 narrowed(double x, __nv_bfloat16) { return __double2bfloat16(x); }

template <class T>
inline T fused(T a, T b, T c) {
  return narrowed(std::fma(widened(a), widened(b), widened(c)), a);
}

template <class T>
constexpr bool is_sixteen = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;
template <class T>
constexpr bool is_pair = std::is_same_v<T, __half2> || std::is_same_v<T, __nv_bfloat162>;

}  // namespace cuda_on_cpu

template <class T, std::enable_if_t<::cuda_on_cpu::is_sixteen<T>, int> = 0>
inline T __hfma(T a, T b, T c) {
  return ::cuda_on_cpu::fused(a, b, c);
}

template <class T, std::enable_if_t<::cuda_on_cpu::is_pair<T>, int> = 0>
inline T __hfma2(T a, T b, T c) {
  return T(::cuda_on_cpu::fused(a.x, b.x, c.x), ::cuda_on_cpu::fused(a.y, b.y, c.y));
}
