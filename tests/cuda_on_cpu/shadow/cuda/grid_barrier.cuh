// The twin of csrc/cuda/grid_barrier.cuh: the same functions, by the emulator.
#pragma once

#include <cstdint>

#include "runtime/grid_barrier.h"

namespace adept::cuda {

inline void sync_threads_of(int barrier, int threads) { ::cuda_on_cpu::sync_threads_of(barrier, threads); }

inline uint64_t add_and_release(uint64_t* counter) { return ::cuda_on_cpu::add_and_release(counter); }

inline void wait_until_reached(const uint64_t* counter, uint64_t target) {
  ::cuda_on_cpu::wait_until_reached(counter, target);
}

}  // namespace adept::cuda
