// Sums and ranges of integers over a block; every thread of the block takes part and gets the result.
#pragma once

#include <cstdint>

#include "cuda/warp.cuh"

namespace adept::cuda::sampling {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

using Uint64 = unsigned long long;  // the type that atomic operations take

// A call may follow another: nobody writes before all have read.
__device__ __forceinline__ Uint64 block_sum(Uint64 value) {
  __shared__ Uint64 of_warps[kWarps];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < kWarps; ++warp) value += of_warps[warp];
  return value;
}

// The sum up to this lane.
template <class T>
__device__ __forceinline__ T warp_prefix(T value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T below = __shfl_up_sync(kWholeWarp, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

struct Prefix {
  Uint64 before;  // the sum over the threads before this one
  Uint64 total;
};

__device__ inline Prefix block_prefix(Uint64 value) {
  __shared__ Uint64 of_warps[kWarps];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const Uint64 up_to = warp_prefix(value);
  __syncthreads();
  if (lane == kWarpSize - 1) of_warps[warp] = up_to;
  __syncthreads();
  Prefix prefix{up_to - value, 0};
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) prefix.before += of_warps[i];
    prefix.total += of_warps[i];
  }
  return prefix;
}

struct Range {
  uint32_t lowest;
  uint32_t highest;
};

__device__ inline Range block_range(Range of_thread) {
  __shared__ Range of_warps[kWarps];
  const Range of_warp{__reduce_min_sync(kWholeWarp, of_thread.lowest),
                      __reduce_max_sync(kWholeWarp, of_thread.highest)};
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = of_warp;
  __syncthreads();
  Range range = of_warps[0];
  for (int warp = 1; warp < kWarps; ++warp)
    range = {min(range.lowest, of_warps[warp].lowest), max(range.highest, of_warps[warp].highest)};
  return range;
}

}  // namespace adept::cuda::sampling
