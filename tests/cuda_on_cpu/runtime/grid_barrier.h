// Barriers of a part of a block, and counters that order the blocks of a grid.
#pragma once

#include <cstdint>
#include <string>

#include "machine.h"

namespace cuda_on_cpu {

constexpr int kNamedBarriers = 16;  // of which 0 is the block's

void sync_threads_of(int barrier, int threads);

uint64_t add_and_release(uint64_t* counter);

// Only blocks that are on the device at once may wait for each other: one on each multiprocessor.
void wait_until_reached(const uint64_t* counter, uint64_t target);

inline bool is_reached(const Wait& wait) { return *static_cast<const uint64_t*>(wait.object) >= wait.target; }

// What a thread waits for there, in words.
std::string describe_barrier(const Wait& wait);

// For a block that begins.
void forget_named_barriers();

}  // namespace cuda_on_cpu
