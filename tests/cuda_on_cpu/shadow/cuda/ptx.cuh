// The twin of csrc/cuda/ptx.cuh: the same functions, by the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "runtime/async_copies.h"
#include "runtime/memory.h"
#include "runtime/overlap.h"
#include "runtime/tensor_cores.h"

namespace adept::cuda {

template <class T>
inline T* dynamic_shared() {
  return reinterpret_cast<T*>(::cuda_on_cpu::block.dynamic_shared);
}

inline int thread_again() { return static_cast<int>(threadIdx.x); }

inline void pdl_wait() { ::cuda_on_cpu::pdl_wait(); }

inline void pdl_launch_dependents() {}

inline uint4 load_once(const void* address) { return ::cuda_on_cpu::load(static_cast<const uint4*>(address)); }

inline uint2 load_once_8(const void* address) { return ::cuda_on_cpu::load(static_cast<const uint2*>(address)); }

inline float exp2_fast(float x) {
  const float power = std::exp2(x);
  return power < FLT_MIN ? 0 : power;
}

inline uint32_t load_once_4(const void* address) { return ::cuda_on_cpu::load(static_cast<const uint32_t*>(address)); }

inline float held(float value) { return value; }

template <class T>
inline const T* address_of_row(const T* first, uint32_t row, uint32_t row_bytes) {
  return first + uint64_t{row} * row_bytes / sizeof(T);
}

template <uint32_t kMask, uint32_t kBits>
inline uint32_t mask_and_set(uint32_t word) {
  return (word & kMask) | kBits;
}

inline uint32_t widen_e4m3(uint32_t pair) {
  const __half2_raw wide = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
  return wide.x | static_cast<uint32_t>(wide.y) << 16;
}

inline void multiply_add_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ::cuda_on_cpu::multiply_add(::cuda_on_cpu::Sixteen::kFloat16, d, a, b);
}

inline void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ::cuda_on_cpu::multiply_add(::cuda_on_cpu::Sixteen::kBFloat16, d, a, b);
}

inline void load_matrices(uint32_t (&to)[2][2], const void* row) {
  ::cuda_on_cpu::load_matrices(to[0], 4, false, row);
}

inline void load_matrices_transposed(uint32_t (&to)[2][2], const void* row) {
  ::cuda_on_cpu::load_matrices(to[0], 4, true, row);
}

inline void copy_async(void* shared, const void* global, uint32_t bytes = 16) {
  ::cuda_on_cpu::start_copy(shared, global, bytes);
}

inline void end_copies() { ::cuda_on_cpu::end_copy_group(); }

template <int kPending>
inline void wait_for_copies() {
  ::cuda_on_cpu::wait_for_copy_groups(kPending);
}

}  // namespace adept::cuda
