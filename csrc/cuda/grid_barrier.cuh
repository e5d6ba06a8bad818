// Barriers of a part of a block, and counters in global memory that order the blocks of a grid. The tests that run the
// kernels on a CPU replace this file.
#pragma once

#include <cstdint>

namespace adept::cuda {

// A barrier of the first `threads` threads that call it with this number, from 1 to 15; whole warps.
__device__ __forceinline__ void sync_threads_of(int barrier, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Adds 1 and returns what was there. What this thread has written or seen so far is visible to whoever sees the sum.
__device__ __forceinline__ uint64_t add_and_release(uint64_t* counter) {
  uint64_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(counter) : "memory");
  return before;
}

// Waits until the counter has reached `target`, and sees what those who added had written. The blocks that add must all
// be running.
__device__ __forceinline__ void wait_until_reached(const uint64_t* counter, uint64_t target) {
  uint64_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(counter) : "memory");
  } while (now < target);
}

}  // namespace adept::cuda
