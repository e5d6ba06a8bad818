#if defined(CUDA_ON_CPU_RACES)
#include "knowledge.h"

#include <algorithm>
#include <utility>

#include "clocks.h"

namespace cuda_on_cpu::races {
namespace {

using Extents = std::vector<std::shared_ptr<const Extent>>;

// Whether anything grew.
bool raise(std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
  bool grew = false;
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    grew = grew || from[i] > to[i];
    to[i] = std::max(to[i], from[i]);
  }
  return grew;
}

std::shared_ptr<const Extent> join_extents(const std::shared_ptr<const Extent>& a,
                                           const std::shared_ptr<const Extent>& b) {
  if (b == nullptr || a == b) return a;
  if (a == nullptr) return b;
  if (a->phase < b->phase) return join_extents(b, a);
  Extent both = *a;
  const bool steps_grew = a->phase == b->phase && raise(both.steps, b->steps);
  return raise(both.landed, b->landed) || steps_grew ? std::make_shared<const Extent>(std::move(both)) : a;
}

}  // namespace

bool covers(const Clock& clock, const Segment& earlier) {
  if (clock == nullptr || earlier.block >= clock->size() || (*clock)[earlier.block] == nullptr) return false;
  const Extent& extent = *(*clock)[earlier.block];
  const auto thread = static_cast<size_t>(earlier.thread);
  if (earlier.is_copy()) return thread < extent.landed.size() && extent.landed[thread] >= earlier.step;
  return earlier.phase < extent.phase ||
         (earlier.phase == extent.phase && thread < extent.steps.size() && extent.steps[thread] >= earlier.step);
}

// Lanes of a warp that knew the same and learn the same share what they know then.
Clock join(const Clock& a, const Clock& b) {
  static Clock last_a, last_b, last_joined;
  if (b == nullptr || a == b) return a;
  if (a == nullptr) return b;
  if (a == last_a && b == last_b) return last_joined;
  Extents both = *a;
  if (both.size() < b->size()) both.resize(b->size());
  for (size_t i = 0; i < b->size(); ++i) both[i] = join_extents(both[i], (*b)[i]);
  last_a = a;
  last_b = b;
  last_joined = both == *a ? a : std::make_shared<const Extents>(std::move(both));
  return last_joined;
}

Known join(const Known& a, const Known& b) { return {join(a.seen, b.seen), join(a.fenced, b.fenced)}; }

Clock join(const Clock& clock, uint32_t block, Extent extent) {
  Extents one(block + 1);
  one[block] = std::make_shared<const Extent>(std::move(extent));
  return join(clock, std::make_shared<const Extents>(std::move(one)));
}

}  // namespace cuda_on_cpu::races
#endif
