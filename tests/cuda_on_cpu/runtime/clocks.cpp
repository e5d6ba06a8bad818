#if defined(CUDA_ON_CPU_RACES)
#include "clocks.h"

#include <algorithm>
#include <unordered_map>

#include "device.h"
#include "races.h"

namespace cuda_on_cpu::races {
namespace {

struct Lane {
  SegmentId segment = 0;  // none yet since the last point of order
  uint32_t step = 1;
  uint64_t fence = 0;                     // when the last one was, as moment() has it
  std::array<uint32_t, kWarp> known = {};  // the last step of each lane that comes before now
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

std::array<Lane, kMaxThreads> lanes;
uint32_t phase = 0;
std::vector<Segment> segments;  // of this launch
SegmentId launch_first = 1, operator_first = 1;
std::unordered_map<const void*, std::vector<Release>> releases;  // of this launch, by address
std::vector<Acquire> acquires;                                   // of this block

uint64_t moment(uint32_t of_phase, uint32_t step) { return uint64_t{of_phase} << 32 | step; }

Lane& current_lane() { return lanes[current->number]; }

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

}  // namespace

SegmentId first_of_operator() { return operator_first; }
SegmentId first_of_launch() { return launch_first; }
const Segment& segment(SegmentId id) { return segments[id - launch_first]; }

SegmentId current_segment() {
  Lane& lane = current_lane();
  if (lane.segment == 0) {
    segments.push_back({block.number, phase, lane.step, current->number});
    lane.segment = launch_first + static_cast<SegmentId>(segments.size()) - 1;
  }
  return lane.segment;
}

bool is_ordered_in_block(const Segment& earlier) {
  return earlier.phase < phase || earlier.thread == current->number ||
         (earlier.warp() == current->warp && current_lane().known[earlier.lane()] >= earlier.step);
}

bool is_ordered_in_block(const Segment& earlier, unsigned of_lanes) {
  if (earlier.phase < phase) return true;
  if (earlier.warp() != current->warp) return false;
  for (unsigned left = of_lanes & ~(1u << current->lane); left != 0; left &= left - 1) {
    if (current_lane().known[__builtin_ctz(left)] < earlier.step) return false;
  }
  return true;
}

bool is_of_earlier_phase(const Segment& earlier) { return earlier.phase < phase; }

bool is_published(const Segment& earlier) {
  for (const Acquire& acquire : acquires) {
    if (!acquire.fenced || !is_ordered_in_block(acquire.fence)) continue;
    const std::vector<Release>& there = releases[acquire.address];
    const auto end = there.begin() + static_cast<std::ptrdiff_t>(acquire.releases);
    if (std::any_of(there.begin(), end, [&](const Release& release) { return covers(release, earlier); })) return true;
  }
  return false;
}

bool has_seen_atomic(const void* address) {
  return std::any_of(acquires.begin(), acquires.end(), [&](const Acquire& acquire) {
    return acquire.address == address && is_ordered_in_block(acquire.when);
  });
}

void pass_atomic(const void* address) {
  std::vector<Release>& there = releases[address];
  acquires.push_back({address, there.size(), {block.number, phase, current_lane().step, current->number}, false, {}});
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

void passed_fence() {
  Lane& lane = current_lane();
  lane.fence = moment(phase, lane.step);
  for (Acquire& acquire : acquires) {
    if (acquire.fenced || acquire.when.thread != current->number) continue;
    acquire.fenced = true;
    acquire.fence = {block.number, phase, lane.step, current->number};
  }
  end_segment(lane);
}

void synced_warp(int warp, unsigned mask) {
  std::array<uint32_t, kWarp> known = {};
  Lane* const first = &lanes[warp * kWarp];
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const int number = __builtin_ctz(left);
    for (int other = 0; other < kWarp; ++other) known[other] = std::max(known[other], first[number].known[other]);
    known[number] = std::max(known[number], first[number].step);
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    Lane& lane = first[__builtin_ctz(left)];
    lane.known = known;
    end_segment(lane);
  }
}

void passed_barrier() {
  ++phase;
  for (int i = 0; i < thread_count(); ++i) {
    const uint64_t fence = lanes[i].fence;
    lanes[i] = {};
    lanes[i].fence = fence;
  }
}

void began_block() {
  phase = 1;
  acquires.clear();
  std::fill(lanes.begin(), lanes.begin() + thread_count(), Lane{});
}

void began_launch() {
  launch_first += static_cast<SegmentId>(segments.size());
  segments.clear();
  releases.clear();
}

void start_operator() {
  began_launch();
  operator_first = launch_first;
}

bool are_numbers_spent() { return launch_first > 1u << 31; }

void restart_numbers() { launch_first = operator_first = 1; }

}  // namespace cuda_on_cpu::races
#endif
