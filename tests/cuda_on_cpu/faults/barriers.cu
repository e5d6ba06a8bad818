// Mistakes in how threads of a block meet.

#include "faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// A sum over warps without the barrier between writing the parts and reading them.
template <bool kFault>
__global__ void missing_barrier(const int* x, int* sum) {
  __shared__ int parts[kWarps];
  pdl_wait();
  const int part = warp_sum(x[threadIdx.x]);
  if (lane() == 0) parts[warp()] = part;
  if (!kFault) __syncthreads();
  if (threadIdx.x == 0) *sum = parts[0] + parts[1] + parts[2] + parts[3];
}

// Two sums that share their scratch memory: the second overwrites what slow threads still read of the first.
template <bool kFault>
__device__ int block_sum(int value, int* parts) {
  const int part = warp_sum(value);
  if (!kFault) __syncthreads();
  if (lane() == 0) parts[warp()] = part;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += parts[i];
  return sum;
}

template <bool kFault>
__global__ void overwritten_scratch(const int* x, int* sums) {
  __shared__ int parts[kWarps];
  pdl_wait();
  const int first = block_sum<kFault>(x[threadIdx.x], parts);
  const int second = block_sum<kFault>(2 * x[threadIdx.x], parts);
  sums[threadIdx.x] = first + second;
}

// A barrier that only some threads of the block come to.
template <bool kFault>
__global__ void divergent_barrier(int* sum) {
  __shared__ int value;
  pdl_wait();
  if (threadIdx.x == 0) value = 3;
  if (!kFault || threadIdx.x < 64) __syncthreads();
  sum[threadIdx.x] = value;
}

// A shuffle of the whole warp in a branch that half of it takes.
template <bool kFault>
__global__ void divergent_shuffle(const int* x, int* sum) {
  pdl_wait();
  int value = x[threadIdx.x];
  if (!kFault || lane() < 16) value = warp_sum(value);
  if (threadIdx.x == 0) *sum = value;
}

// A lane that ends while the others still meet with it.
template <bool kFault>
__global__ void ended_lane(const int* x, int* sum) {
  pdl_wait();
  if (kFault && threadIdx.x == 31) return;
  const int total = warp_sum(x[threadIdx.x]);
  if (threadIdx.x == 0) *sum = total;
}

// Half of the warp meets in one operation, half in another.
template <bool kFault>
__global__ void different_operations(const int* x, int* sum) {
  pdl_wait();
  int total = warp_sum(x[threadIdx.x]);
  if (!kFault || lane() < 16) {
    total = __shfl_sync(0xffffffffu, total, 0);
  } else {
    __syncwarp();
  }
  if (threadIdx.x == 0) *sum = total;
}

// Each half names the whole warp in one case, itself in the other.
template <bool kFault>
__global__ void different_masks(const int* x, int* sum) {
  pdl_wait();
  const unsigned half = lane() < 16 ? 0xffffu : 0xffff0000u;
  int total = warp_sum(x[threadIdx.x]);
  total = __shfl_sync(kFault && lane() == 3 ? 0xffffffffu : half, total, lane());
  if (threadIdx.x == 0) *sum = total;
}

// What one lane has written, another reads without __syncwarp.
template <bool kFault>
__global__ void missing_syncwarp(const int* x, int* reversed) {
  __shared__ int held[32];
  pdl_wait();
  held[lane()] = x[lane()];
  if (!kFault) __syncwarp();
  reversed[lane()] = held[31 - lane()];
}

// A shuffle makes lanes meet, but orders nothing in memory.
template <bool kFault>
__global__ void shuffle_for_syncwarp(const int* x, int* reversed) {
  __shared__ int held[32];
  pdl_wait();
  held[lane()] = x[lane()];
  if (kFault) {
    warp_sum(1);
  } else {
    __syncwarp();
  }
  reversed[lane()] = held[31 - lane()];
}

// A counter that each warp raises, and not atomically.
template <bool kFault>
__global__ void plain_counter(int* result) {
  __shared__ int counter;
  pdl_wait();
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  if (lane() == 0) {
    if (kFault) {
      ++counter;
    } else {
      atomicAdd(&counter, 1);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) *result = counter;
}

template <void (*kKernel)(const int*, int*), int kCount>
bool sums() {
  Global<int> x(kCount, 1), sum(1);
  return ran({1, kCount}, kKernel, x.data(), sum.data()) && sum[0] == x.sum();
}

template <void (*kKernel)(const int*, int*)>
bool reverses() {
  Global<int> x(32, 1), reversed(32);
  if (!ran({1, 32}, kKernel, x.data(), reversed.data())) return false;
  for (int i = 0; i < 32; ++i)
    if (reversed[i] != x[31 - i]) return false;
  return true;
}

template <void (*kKernel)(const int*, int*)>
bool sums_twice() {
  Global<int> x(kThreads, 1), sum(kThreads);
  return ran({1, kThreads}, kKernel, x.data(), sum.data()) && sum.is_filled_with(3 * x.sum());
}

template <void (*kKernel)(int*), int kOut, int kExpected>
bool fills() {
  Global<int> out(kOut);
  return ran({1, kThreads}, kKernel, out.data()) && out.is_filled_with(kExpected);
}

const Registered kAll[] = {
    {"missing_barrier", sums<missing_barrier<false>, kThreads>, sums<missing_barrier<true>, kThreads>},
    {"overwritten_scratch", sums_twice<overwritten_scratch<false>>, sums_twice<overwritten_scratch<true>>},
    {"divergent_barrier", fills<divergent_barrier<false>, kThreads, 3>, fills<divergent_barrier<true>, kThreads, 3>},
    {"divergent_shuffle", sums<divergent_shuffle<false>, 32>, sums<divergent_shuffle<true>, 32>},
    {"ended_lane", sums<ended_lane<false>, 32>, sums<ended_lane<true>, 32>},
    {"different_operations", sums<different_operations<false>, 32>, sums<different_operations<true>, 32>},
    {"different_masks", sums<different_masks<false>, 32>, sums<different_masks<true>, 32>},
    {"missing_syncwarp", reverses<missing_syncwarp<false>>, reverses<missing_syncwarp<true>>},
    {"shuffle_for_syncwarp", reverses<shuffle_for_syncwarp<false>>, reverses<shuffle_for_syncwarp<true>>},
    {"plain_counter", fills<plain_counter<false>, 1, kWarps>, fills<plain_counter<true>, 1, kWarps>},
};

}  // namespace
}  // namespace faults
