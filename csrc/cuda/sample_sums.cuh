// Sums of integers over a block; every thread of the block takes part and gets the result.
#pragma once

#include "cuda/warp.cuh"

namespace adept::cuda::sampling {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

using Uint64 = unsigned long long;  // the type that atomic operations take

// Several sums at once.
template <int kCount>
__device__ void block_sums(Uint64 (&values)[kCount]) {
  __shared__ Uint64 of_warps[kCount][kWarps];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sum(values[i]);
    if (threadIdx.x % kWarpSize == 0) of_warps[i][threadIdx.x / kWarpSize] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0;
    for (int warp = 0; warp < kWarps; ++warp) values[i] += of_warps[i][warp];
  }
}

__device__ __forceinline__ Uint64 block_sum(Uint64 value) {
  Uint64 values[1] = {value};
  block_sums(values);
  return values[0];
}

struct Prefix {
  Uint64 before;  // the sum over the threads before this one
  Uint64 total;
};

__device__ inline Prefix block_prefix(Uint64 value) {
  __shared__ Uint64 of_warps[kWarps];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  Uint64 up_to = value;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const Uint64 below = __shfl_up_sync(kWholeWarp, up_to, distance);
    if (lane >= distance) up_to += below;
  }
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

}  // namespace adept::cuda::sampling
