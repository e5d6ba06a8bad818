#include "async_copies.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "machine.h"
#include "mbarriers.h"
#include "memory.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

constexpr uint32_t kCopied = 16;

// Or the arrival that follows copies.
struct Copy {
  void* to;
  std::array<unsigned char, kCopied> bytes;
  uint64_t* barrier = nullptr;
  bool is_handed_on = false;  // to those who wait for an mbarrier
};

// The groups of a thread, oldest first; the last is still open.
using Groups = std::deque<std::vector<Copy>>;

struct AsyncCopies {
  std::vector<Groups> of_thread;
  std::vector<int> arriving;  // the thread of each arrival
};

PerBlock<AsyncCopies> async_copies;

Groups& groups() { return async_copies->of_thread[current->number]; }

void land(const Copy& copy) {
  if (copy.barrier == nullptr) {
    if (!copy.is_handed_on) races::written(copy.to, kCopied);
    std::memcpy(copy.to, copy.bytes.data(), kCopied);
    return;
  }
  std::vector<int>& arriving = async_copies->arriving;
  arriving.erase(std::find(arriving.begin(), arriving.end(), current->number));
  arrive_after_landing(copy.barrier);
}

}  // namespace

void start_copy(void* shared, const void* global, uint32_t bytes) {
  if (bytes > kCopied) fail("an asynchronous copy of more than 16 bytes");
  check_aligned(shared, kCopied);
  check_aligned(global, kCopied);
  if (!is_shared(shared)) fail("an asynchronous copy to what is not shared memory");
  Copy copy{shared, {}};
  if (bytes > 0) races::read(global, bytes);
  races::written(shared, kCopied);
  std::memcpy(copy.bytes.data(), global, bytes);
  std::memset(shared, 0xff, kCopied);
  groups().back().push_back(copy);
}

void end_copy_group() { groups().emplace_back(); }

void wait_for_copy_groups(int pending) {
  while (static_cast<int>(groups().size()) - 1 > pending) {
    for (const Copy& copy : groups().front()) land(copy);
    groups().pop_front();
  }
}

void arrive_after_copies(uint64_t* barrier) {
  const MbarrierPhase lands = phase_of_mbarrier(barrier);
  for (std::vector<Copy>& group : groups()) {
    for (Copy& copy : group) {
      if (copy.barrier != nullptr || copy.is_handed_on) continue;
      races::copied_async(copy.to, kCopied, lands.number, lands.phase);
      copy.is_handed_on = true;
    }
  }
  races::promised_arrival();
  groups().back().push_back({nullptr, {}, barrier});
  async_copies->arriving.push_back(current->number);
}

size_t arrivals_under_way() { return async_copies->arriving.size(); }

void land_before_arrival(size_t number) {
  current = &thread_of_block(async_copies->arriving[number]);
  for (std::vector<Copy>& group : groups()) {
    const auto arrival = std::find_if(group.begin(), group.end(), [](const Copy& copy) { return copy.barrier; });
    const bool arrives = arrival != group.end();
    const std::vector<Copy> landed(group.begin(), arrives ? arrival + 1 : arrival);
    group.erase(group.begin(), arrives ? arrival + 1 : arrival);
    for (const Copy& copy : landed) land(copy);
    if (arrives) return;
  }
}

void drop_copies(int thread_count) {
  std::vector<Groups>& all = async_copies->of_thread;
  if (all.size() < static_cast<size_t>(thread_count)) all.resize(static_cast<size_t>(thread_count));
  for (int i = 0; i < thread_count; ++i) {
    if (all[i].size() != 1 || !all[i].front().empty()) all[i].assign(1, {});
  }
  async_copies->arriving.clear();
}

}  // namespace cuda_on_cpu
