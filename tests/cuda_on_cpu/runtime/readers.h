// Who has read a byte since it was written, for the build that looks for races.
#pragma once

#include <cstdint>

#include "clocks.h"

namespace cuda_on_cpu::races {

// Lanes of one warp in one step, which is that of a segment; or several of that, by a number.
struct Readers {
  SegmentId first = 0;  // the segment, or one of those; 0 is none
  uint32_t lanes = 0;   // or the number
  bool several = false;

  bool operator==(const Readers&) const = default;
};

// Whether all of them, in this launch, come before the running thread; `not_ordered` is one that does not.
bool are_ordered_before(const Readers& readers, SegmentId* not_ordered);

// The running thread, or a copy that it starts, whose segment is `mine`, is one of them now.
Readers with_reader(const Readers& readers, SegmentId mine);

// For a launch that begins.
void forget_readers();

}  // namespace cuda_on_cpu::races
