// The machine that a kernel sees: its thread, its block, what threads of a block do together.
//
// Blocks run one after another and, in a block, one thread at a time, each until it meets others at a barrier, a
// shuffle or the like. That is the most uneven progress that CUDA allows, so a barrier that is missing shows as a
// wrong result. A block of which no thread can go on before another block has done something is set aside.
// Everything here belongs to one launch at a time, on one thread of the process.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "fiber.h"

namespace cuda_on_cpu {

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffffu;

// What a suspended thread waits for, beyond other lanes and the block's barrier.
struct Wait {
  enum class For { kNothing, kMbarrier, kNamedBarrier, kCounter };
  For kind = For::kNothing;
  const void* object = nullptr;
  uint64_t target = 0;  // the phase, the threads, the count
};

struct Thread {
  uint3 index = {};  // threadIdx
  int number = 0;    // in the block
  int warp = 0;
  int lane = 0;
  bool has_waited = false;  // it has called pdl_wait
  bool has_inputs = false;  // and so may touch what earlier kernels do; or the launch does not overlap with them
  Wait wait;
  Fiber fiber;
};

struct Block {
  uint3 thread = {};    // threadIdx of the running thread
  uint3 index = {};     // blockIdx
  unsigned number = 0;  // in the grid
  unsigned slot = 0;    // among the blocks that are under way
  dim3 size;            // blockDim
  dim3 grid;            // gridDim
  char* dynamic_shared = nullptr;
  size_t dynamic_shared_bytes = 0;
  bool overlaps = false;         // with the kernel before it
  bool has_bulk_copies = false;  // as from capability 9.0 on
};

extern Thread* current;  // null outside of kernels
extern Block block;

// What a module keeps for each block that is under way.
template <class T>
class PerBlock {
 public:
  T& operator*() {
    if (last_ == nullptr || slot_ != block.slot) {
      while (values_.size() <= block.slot) values_.emplace_back();
      slot_ = block.slot;
      last_ = &values_[slot_];
    }
    return *last_;
  }
  T* operator->() { return &**this; }

 private:
  std::deque<T> values_;
  unsigned slot_ = 0;
  T* last_ = nullptr;
};

// Ends the launch with an exception that says what went wrong and where.
[[noreturn]] void fail(const std::string& what);

// The same, but the thread goes on until it meets others. For where no exception may be thrown; the first counts.
void note_failure(const std::string& what);
bool has_failed();

enum class Barrier { kSync, kOr, kAnd, kCount };

// __syncthreads and its kin; gives what the kind says of the threads' predicates.
int meet_block(Barrier kind, int predicate = 0);

enum class Meeting { kSync, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kVote, kMatch, kReduce, kMultiply, kLoad };

// What lanes do together. Each hands in its argument; the last to arrive runs `combine` on all of them, where a
// lane that is not in the mask has null.
using Combine = void (*)(void* const* arguments, unsigned mask);
void meet_warp(Meeting kind, unsigned mask, void* argument, Combine combine);

// Suspends the running thread until `wake` names it.
void wait_for(const Wait& wait);
void wake(int thread);
Thread& thread_of_block(int number);

// Begins the threads of the current block, each of which calls `body` with `context`. How many there are and where
// the block stands, `block` says.
void begin_block(void (*body)(void*), void* context);

// Runs them until all have ended (true), or wait for another block. Throws what a thread has failed with.
bool run_block();

// Wakes the threads of the current block that wait for a counter that is reached by now; false if there are none.
bool wake_for_counters();

// Fails with what a thread of the current block waits for in vain.
[[noreturn]] void fail_waiting();

}  // namespace cuda_on_cpu
