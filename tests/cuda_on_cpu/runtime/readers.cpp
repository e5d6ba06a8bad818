#if defined(CUDA_ON_CPU_RACES)
#include "readers.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "device.h"

namespace cuda_on_cpu::races {
namespace {

struct ReadingLanes {
  SegmentId segment;
  uint32_t lanes;
};

struct ReaderSet {
  std::vector<ReadingLanes> parts;
  size_t bytes = 0;         // that it is of; it is changed in place only for all of them
  size_t next_pruned = 16;  // the parts at which those are left out that come before the running thread
};

// Too many to tell apart: nothing orders all of them before anything. Blocks that wait for each other are few.
constexpr uint32_t kMany = ~0u;
constexpr size_t kMaxParts = 256, kMaxPartsOfWaiting = 8192;

bool are_too_many(size_t parts) {
  if (parts <= kMaxParts) return false;
  const uint64_t blocks = uint64_t{block.grid.x} * block.grid.y * block.grid.z;
  return parts > kMaxPartsOfWaiting || blocks > static_cast<uint64_t>(multiprocessors());
}

std::vector<ReaderSet> sets;  // of this launch
std::vector<uint32_t> unused_sets;

bool is_of_this_launch(const Readers& readers) { return readers.first >= first_of_launch(); }

bool is_set(const Readers& readers) { return is_of_this_launch(readers) && readers.several && readers.lanes != kMany; }

bool are_of_one_step(const Segment& a, const Segment& b) {
  return a.block == b.block && a.phase == b.phase && a.step == b.step && a.warp() == b.warp() && !a.is_copy();
}

uint32_t lanes_of(SegmentId id) { return segment(id).is_copy() ? 0 : 1u << segment(id).lane(); }

uint32_t add_set(std::vector<ReadingLanes> parts, size_t bytes) {
  uint32_t number = static_cast<uint32_t>(sets.size());
  if (unused_sets.empty()) {
    sets.emplace_back();
  } else {
    number = unused_sets.back();
    unused_sets.pop_back();
  }
  sets[number] = {std::move(parts), bytes};
  return number;
}

// What comes after the running thread comes after those who come before it.
void prune(ReaderSet& set) {
  std::erase_if(set.parts, [](const ReadingLanes& part) { return are_known(segment(part.segment), part.lanes); });
  set.next_pruned = 2 * set.parts.size() + 16;
}

Readers add(uint32_t number, SegmentId mine) {
  ReaderSet& set = sets[number];
  if (set.parts.size() >= set.next_pruned) prune(set);
  const Segment& reader = segment(mine);
  // Lanes of a step run one after another, so theirs is one of the last; a part more would be no mistake.
  const auto end = set.parts.rbegin() + static_cast<std::ptrdiff_t>(std::min<size_t>(set.parts.size(), 4));
  const auto same = std::find_if(set.parts.rbegin(), end, [&](const ReadingLanes& part) {
    return part.segment == mine || are_of_one_step(segment(part.segment), reader);
  });
  if (same != end) {
    same->lanes |= lanes_of(mine);
  } else {
    set.parts.push_back({mine, lanes_of(mine)});
  }
  const SegmentId first = set.parts.front().segment;
  if (!are_too_many(set.parts.size())) return {first, number, true};
  forget_readers({first, number, true}, set.bytes);
  return {first, kMany, true};
}

}  // namespace

SegmentId find_not_ordered(const Readers& readers) {
  if (!is_of_this_launch(readers)) return 0;
  if (!readers.several) return are_ordered_before(segment(readers.first), readers.lanes) ? 0 : readers.first;
  if (readers.lanes == kMany) return readers.first;
  for (const ReadingLanes& part : sets[readers.lanes].parts)
    if (!are_ordered_before(segment(part.segment), part.lanes)) return part.segment;
  return 0;
}

Readers with_reader(const Readers& readers, SegmentId mine, size_t bytes) {
  const Readers alone{mine, lanes_of(mine), false};
  if (!is_of_this_launch(readers)) return alone;
  if (!readers.several) {
    if (readers.first == mine) return readers;
    const Segment& first = segment(readers.first);
    if (are_of_one_step(first, segment(mine))) return {readers.first, readers.lanes | lanes_of(mine), false};
    if (are_known(first, readers.lanes)) return alone;
    return add(add_set({{readers.first, readers.lanes}}, bytes), mine);
  }
  if (readers.lanes == kMany) return readers;
  ReaderSet& set = sets[readers.lanes];
  if (set.bytes == bytes) return add(readers.lanes, mine);
  set.bytes -= bytes;
  return add(add_set(std::vector<ReadingLanes>(set.parts), bytes), mine);
}

void forget_readers(const Readers& readers, size_t bytes) {
  if (!is_set(readers)) return;
  sets[readers.lanes].bytes -= bytes;
  if (sets[readers.lanes].bytes == 0) unused_sets.push_back(readers.lanes);
}

void forget_readers() {
  sets.clear();
  unused_sets.clear();
}

}  // namespace cuda_on_cpu::races
#endif
