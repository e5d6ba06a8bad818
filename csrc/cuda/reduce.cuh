// Sums and maxima over a block in a fixed order, with the same bits in every thread. Every thread of the block takes
// part. `scratch` is shared memory of one float for each warp; an earlier reduction may have used it.
#pragma once

#include "cuda/warp.cuh"

namespace adept::cuda {

// Unsigned division takes fewer instructions.
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % unsigned{kWarpSize}); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / unsigned{kWarpSize}); }

struct Plus {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// A NaN is ignored if the other value is a number.
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class Combine>
__device__ __forceinline__ float combine_warps(float of_warp, float* scratch, Combine combine) {
  __syncthreads();
  if (lane_index() == 0) scratch[warp_index()] = of_warp;
  __syncthreads();
  float value = scratch[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarpSize; ++warp) value = combine(value, scratch[warp]);
  return value;
}

__device__ __forceinline__ float block_sum(float value, float* scratch) {
  return combine_warps(warp_sum(value), scratch, Plus());
}

__device__ __forceinline__ float block_max(float value, float* scratch) {
  return combine_warps(warp_max(value), scratch, Larger());
}

}  // namespace adept::cuda
