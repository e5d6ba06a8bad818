// Who has read a byte since it was written, for the build that looks for races.
#pragma once

#include <cstddef>
#include <cstdint>

#include "clocks.h"

namespace cuda_on_cpu::races {

// Lanes of one warp in one step, which is that of a segment; or several of that, by the number of a set.
struct Readers {
  SegmentId first = 0;  // the segment, or one of those; 0 is none
  uint32_t lanes = 0;   // or the number
  bool several = false;

  bool operator==(const Readers&) const = default;
};

// One that is of this launch and does not come before the running thread, or 0.
SegmentId find_not_ordered(const Readers& readers);

// The running thread, or a copy that it starts, whose segment is `mine`, is one of them now, for that many bytes.
Readers with_reader(const Readers& readers, SegmentId mine, size_t bytes);

// That many bytes have these readers no more.
void forget_readers(const Readers& readers, size_t bytes);

// For a launch that begins.
void forget_readers();

}  // namespace cuda_on_cpu::races
