// What the blocks of a grid do together, by counters in global memory that are 0 before their first use.
#pragma once

#include "cuda/reduce.cuh"

namespace adept::cuda {

// A barrier of all blocks of a grid, any number of times. Its counter only grows, so a captured graph can be replayed;
// the grid has the same size each time, and all its blocks run at once.
class GridBarrier {
 public:
  explicit __device__ GridBarrier(uint64_t* counter) : counter_(counter) {}

  // By all threads of the team. What the blocks have written before is visible behind it.
  template <class Team>
  __device__ __forceinline__ void sync() const {
    Team::sync();
    if (threadIdx.x == 0) {
      const uint64_t before = add_and_release(counter_);
      wait_until_reached(counter_, (before / gridDim.x + 1) * gridDim.x);
    }
    Team::sync();
  }

 private:
  uint64_t* counter_;
};

// Whether the team is the last of `count` that come here with this counter, which is 0 again afterwards. The last one
// sees what the others have written. `seen`: shared memory.
template <class Team>
__device__ __forceinline__ bool is_last_of(uint64_t* counter, int count, uint64_t* seen) {
  Team::sync();
  if (threadIdx.x == 0) {
    *seen = add_and_release(counter);
    if (*seen == static_cast<uint64_t>(count - 1)) *counter = 0;
  }
  Team::sync();
  return *seen == static_cast<uint64_t>(count - 1);
}

}  // namespace adept::cuda
