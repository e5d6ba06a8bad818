#include "grid_barrier.h"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "memory.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

struct NamedBarrier {
  int threads = 0;
  std::vector<int> arrived;
};

PerBlock<std::array<NamedBarrier, kNamedBarriers>> named_barriers;

void check_counter(const uint64_t* counter) {
  check_aligned(counter, sizeof(*counter));
  if (is_shared(counter)) fail("a counter of blocks is not in global memory");
}

}  // namespace

void sync_threads_of(int number, int threads) {
  if (number < 1 || number >= kNamedBarriers) fail("a barrier has a number that is not from 1 to 15");
  const unsigned in_block = block.size.x * block.size.y * block.size.z;
  if (threads < kWarp || threads % kWarp != 0 || static_cast<unsigned>(threads) > in_block) {
    fail("a barrier is for " + std::to_string(threads) + " threads, which are no whole warps of the block");
  }
  NamedBarrier& barrier = (*named_barriers)[number];
  if (!barrier.arrived.empty() && barrier.threads != threads) {
    fail("threads meet at one barrier with different numbers of threads");
  }
  barrier.threads = threads;
  barrier.arrived.push_back(current->number);
  if (static_cast<int>(barrier.arrived.size()) < threads) {
    return wait_for({Wait::For::kNamedBarrier, &barrier, static_cast<uint64_t>(number)});
  }
  races::synced_threads(barrier.arrived);
  for (const int thread : std::exchange(barrier.arrived, {})) wake(thread);
}

uint64_t add_and_release(uint64_t* counter) {
  check_counter(counter);
  races::used_to_synchronise(counter);
  races::added(counter, *counter + 1);
  return (*counter)++;
}

void wait_until_reached(const uint64_t* counter, uint64_t target) {
  check_counter(counter);
  const uint64_t blocks = uint64_t{block.grid.x} * block.grid.y * block.grid.z;
  if (blocks > static_cast<uint64_t>(multiprocessors())) {
    fail("a block waits for others in a grid of " + std::to_string(blocks) + " blocks, which is larger than the " +
         std::to_string(multiprocessors()) + " that run at once");
  }
  const Wait wait{Wait::For::kCounter, counter, target};
  if (!is_reached(wait)) wait_for(wait);
  races::used_to_synchronise(counter);
  races::reached(counter, target);
}

std::string describe_barrier(const Wait& wait) {
  const std::string target = std::to_string(wait.target);
  if (wait.kind == Wait::For::kNamedBarrier) return "barrier " + target + ", which too few threads come to";
  return "a counter that has reached " + std::to_string(*static_cast<const uint64_t*>(wait.object)) + " of " + target;
}

void forget_named_barriers() { named_barriers->fill({}); }

}  // namespace cuda_on_cpu
