// Sums and maxima over the lanes of a warp, the same bits in every lane. Every lane of the warp takes part.
#pragma once

#include <cuda_runtime.h>

namespace adept::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// Over each `kLanes` neighbouring lanes, a power of two.
template <int kLanes = kWarpSize, class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, distance));
  return value;
}

}  // namespace adept::cuda
