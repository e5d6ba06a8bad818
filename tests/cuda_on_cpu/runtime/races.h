// The build that looks for races: every access of a kernel is compared with what others did to the same bytes.
//
// Two accesses of which one writes race, unless something orders them: a barrier; __syncwarp, but no shuffle or vote;
// between blocks a fence, then an atomic operation that a thread of the other block sees, then a fence of that thread;
// atomic operations among themselves.
// And what an earlier kernel may still be writing or reading waits for pdl_wait. In the other builds, all of
// this is nothing.
#pragma once

#include <cstddef>

namespace cuda_on_cpu::races {

#if defined(CUDA_ON_CPU_RACES)
void began_operator();
void began_launch();
void began_block();
void passed_barrier();
void synced_warp(int warp, unsigned mask);
void passed_fence();
void read(const void* address, size_t bytes);
void written(const void* address, size_t bytes);
void changed_atomically(const void* address, size_t bytes);
#else
inline void began_operator() {}
inline void began_launch() {}
inline void began_block() {}
inline void passed_barrier() {}
inline void synced_warp(int, unsigned) {}
inline void passed_fence() {}
inline void read(const void*, size_t) {}
inline void written(const void*, size_t) {}
inline void changed_atomically(const void*, size_t) {}
#endif

}  // namespace cuda_on_cpu::races
