// What comes before a point of a thread, in its own block and in others: for the build that looks for races.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace cuda_on_cpu::races {

struct Segment;

// Of one block.
struct Extent {
  uint32_t phase = 0;            // all before this one
  std::vector<uint32_t> steps;   // of each thread, the steps of this phase up to this one
  std::vector<uint32_t> landed;  // of each mbarrier, the copies of that many phases
};

// Of all blocks, by their numbers. Many threads and barriers know the same, so none is changed.
using Clock = std::shared_ptr<const std::vector<std::shared_ptr<const Extent>>>;

// What came before, and what of it bulk copies see too (fence_before_bulk_copies).
struct Known {
  Clock seen;
  Clock fenced;
};

bool covers(const Clock& clock, const Segment& earlier);
Clock join(const Clock& a, const Clock& b);
Known join(const Known& a, const Known& b);
Clock join(const Clock& clock, uint32_t block, Extent extent);

}  // namespace cuda_on_cpu::races
