// Sums and maxima over a team in a fixed order, with the same bits in every thread. Every thread of the team takes
// part. `scratch` is shared memory of one float for each warp; an earlier reduction may have used it.
#pragma once

#include "cuda/grid_barrier.cuh"
#include "cuda/warp.cuh"

namespace adept::cuda {

// Unsigned division takes fewer instructions.
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % unsigned{kWarpSize}); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / unsigned{kWarpSize}); }

// The threads that work together: a whole block, or its first threads, while its other warps fill a ring.
struct WholeBlock {
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  static __device__ __forceinline__ int threads() { return static_cast<int>(blockDim.x); }
};

template <int kThreads>
struct FirstThreads {
  static __device__ __forceinline__ void sync() { sync_threads_of(1, kThreads); }
  static __device__ __forceinline__ constexpr int threads() { return kThreads; }
};

struct Plus {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// A NaN is ignored if the other value is a number.
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class Team, class Combine>
__device__ __forceinline__ float combine_warps(float of_warp, float* scratch, Combine combine) {
  Team::sync();
  if (lane_index() == 0) scratch[warp_index()] = of_warp;
  Team::sync();
  float value = scratch[0];
  for (int warp = 1; warp < Team::threads() / kWarpSize; ++warp) value = combine(value, scratch[warp]);
  return value;
}

template <class Team>
__device__ __forceinline__ float team_sum(float value, float* scratch) {
  return combine_warps<Team>(warp_sum(value), scratch, Plus());
}

template <class Team>
__device__ __forceinline__ float team_max(float value, float* scratch) {
  return combine_warps<Team>(warp_max(value), scratch, Larger());
}

}  // namespace adept::cuda
