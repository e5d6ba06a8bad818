#if defined(CUDA_ON_CPU_RACES)
#include "clocks.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "races.h"
#include "readers.h"
#include "sync_objects.h"

namespace cuda_on_cpu::races {
namespace {

struct Lane {
  SegmentId segment = 0;  // none yet since the last point of order
  uint32_t step = 1;
  uint64_t fence = 0;                      // when the last one was, as moment() has it
  std::array<uint32_t, kWarp> known = {};  // the last step of each lane that comes before now
  Known acquired;                          // beyond that
};

// What came before a fence, which came before an atomic operation.
struct Release {
  uint32_t block;
  uint32_t before_phase;  // all earlier phases are published
  int thread;
  std::array<uint32_t, kWarp> known;
  std::vector<uint64_t> fences;  // of each thread
};

struct Acquire {
  const void* address;
  size_t releases;  // that were there by then
  Segment when;     // of the atomic operation
  bool fenced;      // by the same thread
  Segment fence;
};

struct BlockClocks {
  uint32_t phase = 1;
  std::vector<Lane> lanes;
  std::vector<Acquire> acquires;
};

PerBlock<BlockClocks> clocks;
std::vector<Segment> segments;  // of this launch
SegmentId launch_first = 1, operator_first = 1;
std::unordered_map<const void*, std::vector<Release>> releases;  // of this launch, by address

uint64_t moment(uint32_t of_phase, uint32_t step) { return uint64_t{of_phase} << 32 | step; }

Lane& current_lane() { return clocks->lanes[current->number]; }

int thread_count() { return static_cast<int>(block.size.x * block.size.y * block.size.z); }

void end_segment(Lane& lane) {
  lane.segment = 0;
  ++lane.step;
}

bool covers(const Release& release, const Segment& earlier) {
  if (earlier.block != release.block) return false;
  const uint64_t when = moment(earlier.phase, earlier.step);
  return earlier.phase < release.before_phase || release.fences[earlier.thread] >= when ||
         (earlier.phase == release.before_phase && earlier.warp() == release.thread / kWarp &&
          release.known[earlier.lane()] >= earlier.step);
}

bool is_ordered_in_block(const Segment& earlier) {
  return earlier.phase < clocks->phase || earlier.thread == current->number ||
         (earlier.warp() == current->warp && current_lane().known[earlier.lane()] >= earlier.step);
}

bool is_published(const Segment& earlier) {
  for (const Acquire& acquire : clocks->acquires) {
    if (!acquire.fenced || !is_ordered_in_block(acquire.fence)) continue;
    const std::vector<Release>& there = releases[acquire.address];
    const auto end = there.begin() + static_cast<std::ptrdiff_t>(acquire.releases);
    if (std::any_of(there.begin(), end, [&](const Release& release) { return covers(release, earlier); })) return true;
  }
  return false;
}

bool is_known(const Segment& earlier) {
  if (earlier.block == block.number && !earlier.is_copy() && is_ordered_in_block(earlier)) return true;
  return covers(current_lane().acquired.seen, earlier);
}

template <class Is>
bool all_lanes(const Segment& earlier, unsigned lanes, Is is) {
  if (earlier.is_copy() || (earlier.block == block.number && earlier.phase < clocks->phase)) return is(earlier);
  for (unsigned left = lanes; left != 0; left &= left - 1) {
    Segment one = earlier;
    one.thread = earlier.warp() * kWarp + __builtin_ctz(left);
    if (!is(one)) return false;
  }
  return true;
}

Segment now() { return {block.number, clocks->phase, current_lane().step, current->number}; }

// The steps of this phase that a thread knows of, its own among them.
void add_steps(std::vector<uint32_t>& steps, int thread) {
  const Lane& lane = clocks->lanes[thread];
  const int first = thread / kWarp * kWarp;
  for (int i = first; i < std::min(first + kWarp, thread_count()); ++i)
    steps[i] = std::max(steps[i], lane.known[i - first]);
  steps[thread] = std::max(steps[thread], lane.step);
}

Known all_known(const std::vector<int>& threads) {
  Extent own{clocks->phase, std::vector<uint32_t>(static_cast<size_t>(thread_count())), {}};
  Known known;
  for (const int thread : threads) {
    add_steps(own.steps, thread);
    known = join(known, clocks->lanes[thread].acquired);
  }
  known.seen = join(known.seen, block.number, std::move(own));
  return known;
}

}  // namespace

SegmentId first_of_operator() { return operator_first; }
SegmentId first_of_launch() { return launch_first; }
const Segment& segment(SegmentId id) { return segments[id - launch_first]; }

SegmentId add_segment(const Segment& added) {
  segments.push_back(added);
  return launch_first + static_cast<SegmentId>(segments.size()) - 1;
}

SegmentId current_segment() {
  Lane& lane = current_lane();
  if (lane.segment == 0) lane.segment = add_segment(now());
  return lane.segment;
}

bool is_ordered_before(const Segment& earlier) {
  return is_known(earlier) || (earlier.block != block.number && !earlier.is_copy() && is_published(earlier));
}

bool are_ordered_before(const Segment& earlier, unsigned lanes) {
  return all_lanes(earlier, lanes, [](const Segment& one) { return is_ordered_before(one); });
}

bool are_known(const Segment& earlier, unsigned lanes) { return all_lanes(earlier, lanes, is_known); }

bool is_fenced_for_copies(const Segment& earlier) { return covers(current_lane().acquired.fenced, earlier); }

bool has_seen_atomic(const void* address) {
  const std::vector<Acquire>& all = clocks->acquires;
  return std::any_of(all.begin(), all.end(), [&](const Acquire& acquire) {
    return acquire.address == address && is_ordered_in_block(acquire.when);
  });
}

void pass_atomic(const void* address) {
  std::vector<Release>& there = releases[address];
  const std::vector<Lane>& lanes = clocks->lanes;
  const uint32_t phase = clocks->phase;
  clocks->acquires.push_back({address, there.size(), now(), false, {}});
  // Fences of other threads count if a barrier lies between them and this.
  Release release{block.number, 0, current->number, {}, {}};
  bool is_fenced = false;
  for (int i = 0; i < thread_count(); ++i) {
    const uint64_t fence = lanes[i].fence;
    const auto of_phase = static_cast<uint32_t>(fence >> 32);
    const bool counts = fence != 0 && (i == current->number || of_phase < phase);
    release.fences.push_back(counts ? fence : 0);
    if (counts) release.before_phase = std::max(release.before_phase, of_phase);
    is_fenced = is_fenced || counts;
  }
  if (!is_fenced) return;
  if (current_lane().fence >> 32 == phase) release.known = current_lane().known;
  there.push_back(std::move(release));
}

Known release() {
  const Known known = all_known({current->number});
  end_segment(current_lane());
  return known;
}

void acquire(const Known& known) {
  Lane& lane = current_lane();
  lane.acquired = join(lane.acquired, known);
  end_segment(lane);
}

void passed_fence_for_copies() {
  Known& acquired = current_lane().acquired;
  acquired.fenced = release().seen;
}

void passed_fence() {
  Lane& lane = current_lane();
  lane.fence = moment(clocks->phase, lane.step);
  for (Acquire& acquire : clocks->acquires) {
    if (acquire.fenced || acquire.when.thread != current->number) continue;
    acquire.fenced = true;
    acquire.fence = now();
  }
  end_segment(lane);
}

// All go on from the same step, so that what they read next is the read of one warp.
void synced_warp(int warp, unsigned mask) {
  std::array<uint32_t, kWarp> known = {};
  Lane* const first = &clocks->lanes[warp * kWarp];
  Known acquired;
  uint32_t step = 0;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const int number = __builtin_ctz(left);
    const Lane& lane = first[number];
    for (int other = 0; other < kWarp; ++other) known[other] = std::max(known[other], lane.known[other]);
    known[number] = std::max(known[number], lane.step);
    acquired = join(acquired, lane.acquired);
    step = std::max(step, lane.step);
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    Lane& lane = first[__builtin_ctz(left)];
    lane.known = known;
    lane.acquired = acquired;
    lane.step = step;
    end_segment(lane);
  }
}

void synced_threads(const std::vector<int>& threads) {
  const Known known = all_known(threads);
  for (const int thread : threads) {
    clocks->lanes[thread].acquired = known;
    end_segment(clocks->lanes[thread]);
  }
}

void passed_barrier() {
  ++clocks->phase;
  Known acquired;
  for (const Lane& lane : clocks->lanes) acquired = join(acquired, lane.acquired);
  for (Lane& lane : clocks->lanes) {
    const uint64_t fence = lane.fence;
    lane = {};
    lane.fence = fence;
    lane.acquired = acquired;
  }
}

void began_block() {
  clocks->phase = 1;
  clocks->acquires.clear();
  clocks->lanes.assign(static_cast<size_t>(thread_count()), Lane{});
  forget_mbarrier_clocks();
}

void began_launch() {
  launch_first += static_cast<SegmentId>(segments.size());
  segments.clear();
  releases.clear();
  forget_counters();
  forget_readers();
}

void start_operator() {
  began_launch();
  operator_first = launch_first;
}

bool are_numbers_spent() { return launch_first > 1u << 31; }

void restart_numbers() { launch_first = operator_first = 1; }

}  // namespace cuda_on_cpu::races
#endif
