// The build that looks for races: every access of a kernel is compared with what others did to the same bytes.
//
// Two accesses of which one writes race, unless something orders them: a barrier, of the block or of a part of it;
// __syncwarp, but no shuffle or vote; an arrival at an mbarrier, then a wait for that phase; between blocks a fence,
// then an atomic operation that a thread of the other block sees, then a fence of that thread; or add_and_release, then
// wait_until_reached; atomic operations among themselves. A bulk copy comes after what its thread knows, and before who
// has waited for the phase in which it lands.
//
// It also reads and writes past the caches that other accesses go through (the async proxy of PTX). So a write that
// comes before it is seen, and does not land after it, only if a fence.proxy.async lies on the way from one to the
// other, of the writing thread or of a later one: fence_before_bulk_copies. A read that comes before it has its value
// already, and needs none; nor does an access after the wait for its mbarrier.
//
// And what an earlier kernel may still be writing or reading waits for pdl_wait. In the other builds, all of
// this is nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_on_cpu::races {

#if defined(CUDA_ON_CPU_RACES)
void began_operator();
void began_launch();
void began_block();
void passed_barrier();
void synced_warp(int warp, unsigned mask);
void synced_threads(const std::vector<int>& threads);
void passed_fence();
void passed_fence_for_copies();
void read(const void* address, size_t bytes);
void written(const void* address, size_t bytes);
void changed_atomically(const void* address, size_t bytes);
void used_to_synchronise(const void* object);
void copied(const void* to, const void* from, uint32_t bytes, uint32_t mbarrier, uint64_t phase);
void copied_async(const void* to, uint32_t bytes, uint32_t mbarrier, uint64_t phase);
void initialised_mbarrier();
void arrived(uint32_t mbarrier);
void promised_arrival();
void arrived_after_copies(uint32_t mbarrier);
void ended_phase(uint32_t mbarrier, uint64_t phase);
void passed_mbarrier(uint32_t mbarrier);
void added(const uint64_t* counter, uint64_t sum);
void reached(const uint64_t* counter, uint64_t target);
#else
inline void began_operator() {}
inline void began_launch() {}
inline void began_block() {}
inline void passed_barrier() {}
inline void synced_warp(int, unsigned) {}
inline void synced_threads(const std::vector<int>&) {}
inline void passed_fence() {}
inline void passed_fence_for_copies() {}
inline void read(const void*, size_t) {}
inline void written(const void*, size_t) {}
inline void changed_atomically(const void*, size_t) {}
inline void used_to_synchronise(const void*) {}
inline void copied(const void*, const void*, uint32_t, uint32_t, uint64_t) {}
inline void copied_async(const void*, uint32_t, uint32_t, uint64_t) {}
inline void initialised_mbarrier() {}
inline void arrived(uint32_t) {}
inline void promised_arrival() {}
inline void arrived_after_copies(uint32_t) {}
inline void ended_phase(uint32_t, uint64_t) {}
inline void passed_mbarrier(uint32_t) {}
inline void added(const uint64_t*, uint64_t) {}
inline void reached(const uint64_t*, uint64_t) {}
#endif

}  // namespace cuda_on_cpu::races
