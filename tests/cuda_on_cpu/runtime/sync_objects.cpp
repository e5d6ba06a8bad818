#if defined(CUDA_ON_CPU_RACES)
#include "sync_objects.h"

#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include "clocks.h"
#include "races.h"

namespace cuda_on_cpu::races {
namespace {

struct MbarrierClock {
  Known arrived;    // with all arrivals so far
  Known completed;  // with those up to the end of the last phase
};

struct OfBlock {
  std::vector<MbarrierClock> mbarriers;
  std::unordered_map<int, std::deque<Known>> promised;  // of each thread: arrivals that come after its copies
};

PerBlock<OfBlock> of_block;

// A counter's history: what those knew who raised it to each value. A thread that waits for a value learns that, even
// if the counter has gone on by then.
struct Counter {
  uint64_t first = 0;
  std::deque<Known> history;
};

constexpr size_t kMaxHistory = 4096;

std::unordered_map<const uint64_t*, Counter> counters;  // of this launch

}  // namespace

void forget_counters() { counters.clear(); }

void forget_mbarrier_clocks() { *of_block = {}; }

void initialised_mbarrier() { of_block->mbarriers.emplace_back(); }

void arrived(uint32_t mbarrier) {
  Known& all = of_block->mbarriers[mbarrier].arrived;
  all = join(all, release());
}

void promised_arrival() { of_block->promised[current->number].push_back(release()); }

void arrived_after_copies(uint32_t mbarrier) {
  std::deque<Known>& promised = of_block->promised[current->number];
  Known& all = of_block->mbarriers[mbarrier].arrived;
  all = join(all, promised.front());
  promised.pop_front();
}

void ended_phase(uint32_t mbarrier, uint64_t phase) {
  MbarrierClock& clock = of_block->mbarriers[mbarrier];
  Extent landed;
  landed.landed.resize(mbarrier + 1);
  landed.landed[mbarrier] = static_cast<uint32_t>(phase) + 1;
  clock.arrived.seen = join(clock.arrived.seen, block.number, std::move(landed));
  clock.completed = clock.arrived;
}

void passed_mbarrier(uint32_t mbarrier) { acquire(of_block->mbarriers[mbarrier].completed); }

void added(const uint64_t* counter, uint64_t sum) {
  Counter& of = counters[counter];
  // A counter that was set in another way hands on nothing of before.
  if (of.first + of.history.size() != sum) of = {sum, {}};
  if (!of.history.empty()) acquire(of.history.back());
  of.history.push_back(release());
  if (of.history.size() <= kMaxHistory) return;
  of.history.pop_front();
  ++of.first;
}

void reached(const uint64_t* counter, uint64_t target) {
  const auto found = counters.find(counter);
  if (found == counters.end()) return;
  const Counter& of = found->second;
  if (target - of.first < of.history.size()) acquire(of.history[target - of.first]);
}

}  // namespace cuda_on_cpu::races
#endif
