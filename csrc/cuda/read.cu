// read: loads memory as the kernels load weights and only adds the words up: the bandwidth that kernels are compared
// with.
//
// Layout: a thread has eight loads of 16 bytes in flight, one grid apart, so 512 threads have 64 kB and the two blocks
// that fit on a multiprocessor 128 kB. Lower bound: the bytes over the memory's bandwidth, 0.22 ms for 1 GiB at 4.8
// TB/s. The sum of all words keeps the loads from being optimised away, and a test can check it: two additions for each
// 16 bytes and one atomic addition for each block cost nothing beside the loads.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"

namespace adept::cuda {
namespace {

constexpr unsigned kThreads = 512;
constexpr size_t kInFlight = 8;  // loads of a thread
// More than fit at once: multiprocessors nearer to the memory take blocks from those farther away.
constexpr size_t kBlocksPerMultiprocessor = 8;

__device__ __forceinline__ uint32_t sum_of(const uint4 (&vectors)[kInFlight]) {
  uint32_t sum = 0;
#pragma unroll
  for (size_t k = 0; k < kInFlight; ++k) sum += vectors[k].x + vectors[k].y + vectors[k].z + vectors[k].w;
  return sum;
}

__global__ void __launch_bounds__(kThreads, 2)
    read_vectors(const uint4* __restrict__ from, size_t count, uint32_t* __restrict__ sink) {
  __shared__ uint32_t of_block;
  if (threadIdx.x == 0) of_block = 0;
  pdl_launch_dependents();
  pdl_wait();
  const size_t stride = size_t{gridDim.x} * kThreads;
  size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  uint32_t sum = 0;
  uint4 held[kInFlight];
  for (; i + (kInFlight - 1) * stride < count; i += kInFlight * stride) {
#pragma unroll
    for (size_t k = 0; k < kInFlight; ++k) held[k] = load_once(from + i + k * stride);
    sum += sum_of(held);
  }
  // One more round for the rest, whose loads are in flight together too.
#pragma unroll
  for (size_t k = 0; k < kInFlight; ++k) {
    held[k] = {0, 0, 0, 0};
    if (i + k * stride < count) held[k] = load_once(from + i + k * stride);
  }
  const uint32_t of_warp = warp_sum(sum + sum_of(held));
  __syncthreads();
  if (lane_index() == 0) atomicAdd(&of_block, of_warp);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(sink, of_block);
}

}  // namespace

cudaError_t read(const void* from, size_t bytes, uint32_t* sink, cudaStream_t stream) {
  if (bytes % sizeof(uint4) != 0) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(uint4) != 0) return cudaErrorMisalignedAddress;
  const size_t count = bytes / sizeof(uint4);
  if (count == 0) return cudaSuccess;
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  const size_t max_blocks = kBlocksPerMultiprocessor * static_cast<size_t>(processors);
  const size_t wanted = (count + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(wanted < max_blocks ? wanted : max_blocks);
  return launch(stream, {blocks, kThreads}, read_vectors, static_cast<const uint4*>(from), count, sink);
}

}  // namespace adept::cuda
