#include "mbarriers.h"

#include <cstdlib>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory.h"

namespace cuda_on_cpu {
namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;     // of arrivals, and of bytes
constexpr uint64_t kHeld = 0xadadadadadadadadull;  // what the memory of a barrier holds, for nobody to overwrite

struct Mbarrier {
  uint32_t number;
  uint32_t arrivals;  // of each phase
  uint32_t to_come;   // of them in this one
  int initialised_by;
  int64_t bytes = 0;  // announced and not landed; less than 0 where they landed first
  uint64_t phase = 0;
  bool is_shown = false;
  std::vector<int> waiting;
};

PerBlock<std::unordered_map<const uint64_t*, Mbarrier>> mbarriers;

Mbarrier& find_mbarrier(const uint64_t* barrier) {
  const auto found = mbarriers->find(barrier);
  if (found == mbarriers->end()) fail("an mbarrier is used that nobody has initialised");
  if (*barrier != kHeld) fail("the memory of an mbarrier is overwritten");
  return found->second;
}

void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.to_come > 0 || barrier.bytes > 0) return;
  if (barrier.bytes < 0) fail("more bytes land on an mbarrier than were announced");
  races::ended_phase(barrier.number, barrier.phase++);
  barrier.to_come = barrier.arrivals;
  for (const int thread : std::exchange(barrier.waiting, {})) wake(thread);
}

void count_bytes(Mbarrier& barrier, int64_t bytes) {
  barrier.bytes += bytes;
  if (std::llabs(barrier.bytes) > kMaxCount) fail("an mbarrier counts more than 1048575 bytes");
}

void count_arrival(Mbarrier& barrier) {
  if (barrier.to_come == 0) fail("an mbarrier gets more arrivals in one phase than it was initialised with");
  --barrier.to_come;
  end_phase_if_complete(barrier);
}

}  // namespace

void init_mbarrier(uint64_t* barrier, uint32_t arrivals) {
  check_aligned(barrier, sizeof(*barrier));
  if (!is_shared(barrier)) fail("an mbarrier is initialised in what is not shared memory");
  if (arrivals == 0 || arrivals > kMaxCount) fail("an mbarrier is initialised with a count that is not allowed");
  const auto number = static_cast<uint32_t>(mbarriers->size());
  if (!mbarriers->emplace(barrier, Mbarrier{number, arrivals, arrivals, current->number}).second) {
    fail("an mbarrier is initialised a second time");
  }
  races::written(barrier, sizeof(*barrier));
  races::initialised_mbarrier();
  *barrier = kHeld;
}

void show_mbarriers() {
  for (auto& [address, barrier] : *mbarriers) barrier.is_shown |= barrier.initialised_by == current->number;
}

void arrive_at_mbarrier(uint64_t* at, uint32_t bytes) {
  if (bytes > 0 && !block.has_bulk_copies) fail("bytes are announced on a device that has no bulk copies");
  Mbarrier& barrier = find_mbarrier(at);
  races::used_to_synchronise(at);
  races::arrived(barrier.number);
  count_bytes(barrier, bytes);
  count_arrival(barrier);
}

void wait_for_mbarrier(uint64_t* at, uint32_t parity) {
  if (parity > 1) fail("a parity is neither 0 nor 1");
  Mbarrier& barrier = find_mbarrier(at);
  races::used_to_synchronise(at);
  const uint64_t phase = barrier.phase;
  if (phase % 2 == parity) {
    barrier.waiting.push_back(current->number);
    wait_for({Wait::For::kMbarrier, at, phase});
    // A GPU's thread looks from time to time.
    if (barrier.phase != phase + 1) fail("a thread waits for a phase of an mbarrier while two phases end");
  }
  races::passed_mbarrier(barrier.number);
}

void land_on_mbarrier(uint64_t* at, uint32_t bytes) {
  Mbarrier& barrier = find_mbarrier(at);
  count_bytes(barrier, -int64_t{bytes});
  end_phase_if_complete(barrier);
}

void arrive_after_landing(uint64_t* at) {
  Mbarrier& barrier = find_mbarrier(at);
  races::arrived_after_copies(barrier.number);
  count_arrival(barrier);
}

MbarrierPhase phase_of_mbarrier(const uint64_t* at) {
  races::used_to_synchronise(at);
  return {find_mbarrier(at).number, find_mbarrier(at).phase};
}

void check_shown(const uint64_t* at) {
  if (!find_mbarrier(at).is_shown) fail("a bulk copy uses an mbarrier whose initialisation is not fenced");
}

std::string describe_mbarrier(const Wait& wait) {
  const Mbarrier& barrier = mbarriers->at(static_cast<const uint64_t*>(wait.object));
  return "phase " + std::to_string(wait.target) + " (parity " + std::to_string(wait.target % 2) + ") of mbarrier " +
         std::to_string(barrier.number) + " of its block, to which " + std::to_string(barrier.to_come) + " of " +
         std::to_string(barrier.arrivals) + " arrivals and " + std::to_string(barrier.bytes) + " bytes have not come";
}

void forget_mbarriers() { mbarriers->clear(); }

void check_mbarriers_at_end() {
  for (const auto& [address, barrier] : *mbarriers) {
    if (barrier.bytes != 0) fail("the bytes announced on an mbarrier are not those that landed when the block ends");
  }
}

}  // namespace cuda_on_cpu
