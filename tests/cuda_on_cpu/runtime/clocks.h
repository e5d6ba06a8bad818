// What orders the threads of a launch, for the build that looks for races.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "knowledge.h"
#include "machine.h"

namespace cuda_on_cpu::races {

constexpr uint32_t kOfCopies = ~0u;

// What one thread does from one point of order to the next. A phase ends at a barrier of the block; in it, a step
// ends where the thread meets its warp in __syncwarp, passes a fence, or meets others in another way. Or what a copy
// does; it lands in a phase of an mbarrier.
struct Segment {
  uint32_t block;
  uint32_t phase;  // or kOfCopies
  uint32_t step;   // or the phase of the mbarrier, from 1
  int thread;      // or the mbarrier

  bool is_copy() const { return phase == kOfCopies; }
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

// The running thread's. What it knows does not change in it.
SegmentId current_segment();

// For what is no thread's.
SegmentId add_segment(const Segment& segment);

// Whether `earlier` comes before what the running thread does now: of its block, by a barrier, __syncwarp or what the
// thread has acquired; of another, by the latter, or by a fence and an atomic operation that a thread of this block
// has seen, and fenced after that.
bool is_ordered_before(const Segment& earlier);

// The same for a step of several lanes; and without looking for fences.
bool are_ordered_before(const Segment& earlier, unsigned lanes);
bool are_known(const Segment& earlier, unsigned lanes);

// Whether a fence_before_bulk_copies lies between the two, be it of the thread itself or of one on the way.
bool is_fenced_for_copies(const Segment& earlier);

// Whether the running thread knows of an atomic operation on this address in its block.
bool has_seen_atomic(const void* address);

// The running thread changes an address atomically: it publishes what it has fenced, and sees what others have.
void pass_atomic(const void* address);

// All that comes before now, of which others may acquire the knowledge; ends the thread's segment.
Known release();
void acquire(const Known& known);

}  // namespace cuda_on_cpu::races
