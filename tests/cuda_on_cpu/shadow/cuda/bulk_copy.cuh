// The twin of csrc/cuda/bulk_copy.cuh: the same functions, by the emulator.
#pragma once

#include <cstdint>

#include "runtime/async_copies.h"
#include "runtime/bulk_copies.h"
#include "runtime/mbarriers.h"
#include "runtime/races.h"

namespace adept::cuda {

using Mbarrier = uint64_t;

// Known only when a kernel runs, so that both paths are tried.
inline bool has_bulk_copies() { return ::cuda_on_cpu::block.has_bulk_copies; }

inline void mbarrier_init(Mbarrier* barrier, uint32_t arrivals) { ::cuda_on_cpu::init_mbarrier(barrier, arrivals); }

inline void mbarrier_fence_init() { ::cuda_on_cpu::show_mbarriers(); }

inline void mbarrier_arrive(Mbarrier* barrier) { ::cuda_on_cpu::arrive_at_mbarrier(barrier); }

inline void mbarrier_arrive_expecting(Mbarrier* barrier, uint32_t bytes) {
  ::cuda_on_cpu::arrive_at_mbarrier(barrier, bytes);
}

inline void mbarrier_arrive_after_copies(Mbarrier* barrier) { ::cuda_on_cpu::arrive_after_copies(barrier); }

inline void mbarrier_wait(Mbarrier* barrier, uint32_t parity) { ::cuda_on_cpu::wait_for_mbarrier(barrier, parity); }

inline void copy_bulk(void* shared, const void* global, uint32_t bytes, Mbarrier* barrier) {
  ::cuda_on_cpu::start_bulk_copy(shared, global, bytes, barrier);
}

inline void fence_before_bulk_copies() { ::cuda_on_cpu::races::passed_fence_for_copies(); }

}  // namespace adept::cuda
