#if defined(CUDA_ON_CPU_RACES)
#include "readers.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "device.h"

namespace cuda_on_cpu::races {
namespace {

struct ReadingLanes {
  SegmentId segment;
  uint32_t lanes;
};

// Too many to tell apart: nothing orders all of them before anything. Blocks that wait for each other are few.
constexpr uint32_t kMany = ~0u;
constexpr size_t kMaxParts = 256, kMaxPartsOfWaiting = 8192;

size_t max_parts() {
  const uint64_t blocks = uint64_t{block.grid.x} * block.grid.y * block.grid.z;
  return blocks <= static_cast<uint64_t>(multiprocessors()) ? kMaxPartsOfWaiting : kMaxParts;
}

// Of this launch. Neighbouring bytes have the same readers, so sets are kept by how they come about.
std::vector<std::vector<ReadingLanes>> sets;
std::map<std::pair<std::pair<SegmentId, uint32_t>, std::pair<bool, SegmentId>>, Readers> grown;

// The last answers: nothing that a thread knows changes in a segment.
struct {
  Readers readers;
  SegmentId mine = 0;
  SegmentId not_ordered = 0;
} last_asked;
struct {
  Readers readers;
  SegmentId mine = 0;
  Readers result;
} last_grown;

bool is_of_this_launch(const Readers& readers) { return readers.first >= first_of_launch(); }

bool are_of_one_step(const Segment& a, const Segment& b) {
  return a.block == b.block && a.phase == b.phase && a.step == b.step && a.warp() == b.warp() && !a.is_copy();
}

uint32_t lanes_of(SegmentId id) { return segment(id).is_copy() ? 0 : 1u << segment(id).lane(); }

SegmentId find_not_ordered(const Readers& readers) {
  if (!readers.several) return is_ordered_before(segment(readers.first), readers.lanes) ? 0 : readers.first;
  if (readers.lanes == kMany) return readers.first;
  for (const ReadingLanes& part : sets[readers.lanes])
    if (!is_ordered_before(segment(part.segment), part.lanes)) return part.segment;
  return 0;
}

// Those who come before the running thread need not be kept: what comes after it comes after them.
Readers grow(const Readers& readers, SegmentId mine) {
  std::vector<ReadingLanes> parts;
  if (is_of_this_launch(readers) && readers.several) {
    parts = sets[readers.lanes];
  } else if (is_of_this_launch(readers)) {
    parts.push_back({readers.first, readers.lanes});
  }
  const auto is_before = [](const ReadingLanes& part) { return is_ordered_before(segment(part.segment), part.lanes); };
  parts.erase(std::remove_if(parts.begin(), parts.end(), is_before), parts.end());
  const auto same = std::find_if(parts.begin(), parts.end(), [&](const ReadingLanes& part) {
    return are_of_one_step(segment(part.segment), segment(mine));
  });
  if (same != parts.end()) {
    same->lanes |= lanes_of(mine);
  } else {
    parts.push_back({mine, lanes_of(mine)});
  }
  if (parts.size() == 1) return {parts[0].segment, parts[0].lanes, false};
  if (parts.size() > max_parts()) return {parts[0].segment, kMany, true};
  const Readers several{parts[0].segment, static_cast<uint32_t>(sets.size()), true};
  sets.push_back(std::move(parts));
  return several;
}

}  // namespace

bool are_ordered_before(const Readers& readers, SegmentId* not_ordered) {
  if (!is_of_this_launch(readers)) return true;
  const SegmentId mine = current_segment();
  if (!(last_asked.readers == readers) || last_asked.mine != mine) {
    last_asked = {readers, mine, find_not_ordered(readers)};
  }
  *not_ordered = last_asked.not_ordered;
  return last_asked.not_ordered == 0;
}

Readers with_reader(const Readers& readers, SegmentId mine) {
  if (is_of_this_launch(readers) && !readers.several) {
    if (readers.first == mine) return readers;
    if (are_of_one_step(segment(readers.first), segment(mine))) {
      return {readers.first, readers.lanes | lanes_of(mine), false};
    }
  }
  if (is_of_this_launch(readers) && readers.several && readers.lanes == kMany) return readers;
  if (!(last_grown.readers == readers) || last_grown.mine != mine) {
    const auto [found, is_new] = grown.try_emplace({{readers.first, readers.lanes}, {readers.several, mine}}, Readers{});
    if (is_new) found->second = grow(readers, mine);
    last_grown = {readers, mine, found->second};
  }
  return last_grown.result;
}

void forget_readers() {
  sets.clear();
  grown.clear();
  last_asked = {};
  last_grown = {};
}

}  // namespace cuda_on_cpu::races
#endif
