// Barriers in shared memory (mbarriers) and the asynchronous copies that complete on them. The tests that run the
// kernels on a CPU replace this file.
//
// A phase of a barrier completes once all its arrivals have come and all bytes that were announced have landed; the
// barrier is then in its next phase. Waits name a phase by its parity: the first is 0.
#pragma once

#include <cstdint>

namespace adept::cuda {

using Mbarrier = uint64_t;  // 8 bytes of shared memory, of which the device alone knows the meaning

// Whether one thread copies many bytes (9.0), or each thread 16 (8.x).
__device__ constexpr bool has_bulk_copies() {
#if __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

namespace ptx {
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
}  // namespace ptx

// One thread initialises a barrier, then calls mbarrier_fence_init, then the block meets.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(arrivals) : "memory");
}

// Shows initialised barriers to the engine that copies.
__device__ __forceinline__ void mbarrier_fence_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(ptx::shared_address(barrier))
      : "memory");
}

// Arrives, and announces bytes that copies will bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expecting(Mbarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                   ptx::shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

// Arrives once all copy_async of this thread so far have landed.
__device__ __forceinline__ void mbarrier_arrive_after_copies(Mbarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(ptx::shared_address(barrier)) : "memory");
}

// Waits until the phase of that parity is complete. What arrived before is then visible.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
          "r"(ptx::shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
          "r"(ptx::shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// Copies `bytes` bytes, a multiple of 16, to shared memory; they land on the barrier. Both addresses are aligned to 16.
// The bytes are not read again: they leave L2 first.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes, Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  uint64_t leaves_first;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(leaves_first));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(ptx::shared_address(shared)),
      "l"(global), "r"(bytes), "r"(ptx::shared_address(barrier)), "l"(leaves_first)
      : "memory");
#endif
}

// Orders this thread's earlier accesses, and those it has seen, before later bulk copies of the same memory.
__device__ __forceinline__ void fence_before_bulk_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

}  // namespace adept::cuda
