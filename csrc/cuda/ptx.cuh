// Instructions that have no CUDA C++ function. The tests that run the kernels on a CPU replace this file.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace adept::cuda {

// A block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char adept_dynamic_shared[];
  return reinterpret_cast<T*>(adept_dynamic_shared);
}

// threadIdx.x, read anew: what is computed from it after a loop needs no register in the loop.
__device__ __forceinline__ int thread_again() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// Programmatic dependent launch: waits until the previous kernel has ended and its writes are visible. Each thread
// calls this once, before it reads anything that an earlier kernel may have written.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Once every block has called this or ended, the next kernel may start and run up to its pdl_wait.
__device__ __forceinline__ void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Loads 16 bytes that no thread writes and that are not read again: not kept in L1, evicted first from L2.
__device__ __forceinline__ uint4 load_once(const void* address) {
  uint64_t leaves_first;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(leaves_first));
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address), "l"(leaves_first));
  return v;
}

// The same for 8 bytes, for rows that are not aligned to 16.
__device__ __forceinline__ uint2 load_once_8(const void* address) {
  uint64_t leaves_first;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(leaves_first));
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
               : "=r"(v.x), "=r"(v.y)
               : "l"(address), "l"(leaves_first));
  return v;
}

// 2 to the power of x in one instruction, off by 2 units in the last place; 0 instead of a subnormal number.
__device__ __forceinline__ float exp2_fast(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// The same for 4 bytes, of lanes that have few columns.
__device__ __forceinline__ uint32_t load_once_4(const void* address) {
  uint64_t leaves_first;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(leaves_first));
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;"
               : "=r"(v)
               : "l"(address), "l"(leaves_first));
  return v;
}

// The same value, which the compiler does not compute again for each use.
__device__ __forceinline__ float held(float value) {
  asm("" : "+f"(value));
  return value;
}

// `row` times `row_bytes` behind `first`, in one instruction; the compiler makes several.
template <class T>
__device__ __forceinline__ const T* address_of_row(const T* first, uint32_t row, uint32_t row_bytes) {
  const T* address;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(row), "r"(row_bytes), "l"(first));
  return address;
}

// (word & mask) | bits in one instruction; the compiler makes two.
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t mask_and_set(uint32_t word) {
  uint32_t to;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(to) : "r"(word), "n"(kMask), "n"(kBits));
  return to;
}

// Two e4m3 floats, in the low 16 bits of `pair`, as float16, exactly.
__device__ __forceinline__ uint32_t widen_e4m3(uint32_t pair) {
#if __CUDA_ARCH__ >= 890
  uint32_t wide;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(static_cast<uint16_t>(pair)));
  return wide;
#else
  // Shifted right by one bit, exponent and mantissa are float16's with an exponent 8 too small. There is no NaN.
  const uint32_t high_bytes = __byte_perm(pair, 0, 0x1404);
  const uint32_t bits = (high_bytes & 0x80008000u) | ((high_bytes >> 1) & 0x3f803f80u);
  __half2 wide;
  memcpy(&wide, &bits, sizeof(wide));
  wide = __hmul2(wide, __float2half2_rn(256));
  memcpy(&pair, &wide, sizeof(pair));
  return pair;
#endif
}

// d += a · b of a warp: a is [16, 16] by rows, b [16, 8] by columns, d [16, 8]. With g = lane / 4 and t = lane % 4 a
// lane holds a[0]: row g, columns 2t and 2t + 1; a[1]: row g + 8, the same; a[2], a[3]: the two rows, columns 2t + 8
// and 2t + 9; b[0]: rows 2t and 2t + 1 of column g; b[1]: rows 2t + 8 and 2t + 9; d[0], d[1]: row g, columns 2t and
// 2t + 1; d[2], d[3]: row g + 8, the same.
__device__ __forceinline__ void multiply_add_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same in bfloat16.
__device__ __forceinline__ void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four matrices of 8 x 8 elements of 16 bits from shared memory: lane 8m + r names row r of matrix m, 16 bytes.
// Lane 4g + t gets elements 2t and 2t + 1 of row g of each, as `to` [m / 2][m % 2].
__device__ __forceinline__ void load_matrices(uint32_t (&to)[2][2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0][0]), "=r"(to[0][1]), "=r"(to[1][0]), "=r"(to[1][1])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same, with columns in place of rows: elements 2t and 2t + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[2][2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0][0]), "=r"(to[0][1]), "=r"(to[1][0]), "=r"(to[1][1])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Copies `bytes` bytes, then zeros up to 16, to shared memory, asynchronously; wait_for_copies waits for the group.
__device__ __forceinline__ void copy_async(void* shared, const void* global, uint32_t bytes = 16) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the `kPending` newest groups of this thread are complete.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace adept::cuda
