// What orders the threads of a launch, for the build that looks for races.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "machine.h"

namespace cuda_on_cpu::races {

// What one thread does from one point of order to the next. A phase ends at a barrier of the block; in it, a step
// ends where the thread meets its warp in __syncwarp, or passes a fence.
struct Segment {
  uint32_t block;
  uint32_t phase;
  uint32_t step;
  int thread;

  int warp() const { return thread / kWarp; }
  int lane() const { return thread % kWarp; }
};

// Segments have numbers that grow from launch to launch; 0 is none.
using SegmentId = uint32_t;

// What came before is none of this operator's.
void start_operator();

// Whether numbers are about to run out; then all that were handed out must be forgotten.
bool are_numbers_spent();
void restart_numbers();

SegmentId first_of_operator();
SegmentId first_of_launch();
const Segment& segment(SegmentId id);  // of this launch

// The running thread's.
SegmentId current_segment();

// Whether the running thread's block has a barrier or __syncwarp between `earlier`, of the same block, and now.
bool is_ordered_in_block(const Segment& earlier);

// The same for a step of several lanes.
bool is_ordered_in_block(const Segment& earlier, unsigned lanes);

// The same for a phase of several warps.
bool is_of_earlier_phase(const Segment& earlier);

// Whether `earlier`, of another block, was published by a fence and an atomic operation that a thread of this block has
// seen, and fenced after that.
bool is_published(const Segment& earlier);

// Whether the running thread knows of an atomic operation on this address in its block.
bool has_seen_atomic(const void* address);

// The running thread changes an address atomically: it publishes what it has fenced, and sees what others have.
void pass_atomic(const void* address);

}  // namespace cuda_on_cpu::races
