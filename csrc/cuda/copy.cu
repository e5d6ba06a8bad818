// copy: a streaming copy in loads of 16 bytes, to measure what reading and writing at the speed of the memory gives.
//
// Layout: a thread has 4 loads of 16 bytes in flight, a grid apart; 8 blocks for each multiprocessor. Lower bound: the
// bytes read and written over the memory's bandwidth. Limit: memory bandwidth.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace adept::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr size_t kUnroll = 4;  // loads in flight in each thread
constexpr size_t kBlocksPerMultiprocessor = 8;

// __ldcs and __stcs mark data that is used once, to be evicted from the caches first.
__global__ void __launch_bounds__(kThreads)
    copy_vectors(const uint4* __restrict__ from, uint4* __restrict__ to, size_t count) {
  pdl_wait();
  const size_t stride = size_t{gridDim.x} * kThreads;
  size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 held[kUnroll];
#pragma unroll
    for (size_t k = 0; k < kUnroll; ++k) held[k] = __ldcs(from + i + k * stride);
#pragma unroll
    for (size_t k = 0; k < kUnroll; ++k) __stcs(to + i + k * stride, held[k]);
  }
  for (; i < count; i += stride) __stcs(to + i, __ldcs(from + i));
}

__global__ void __launch_bounds__(kThreads)
    copy_bytes(const uint8_t* __restrict__ from, uint8_t* __restrict__ to, size_t count) {
  pdl_wait();
  const size_t stride = size_t{gridDim.x} * kThreads;
  for (size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

// As many blocks as give each thread work, up to what fills the device.
cudaError_t choose_blocks(size_t items, unsigned* blocks) {
  int count = 0;
  const cudaError_t error = multiprocessors(&count);
  const size_t max_blocks = kBlocksPerMultiprocessor * static_cast<size_t>(count);
  const size_t wanted = (items + kThreads - 1) / kThreads;
  *blocks = static_cast<unsigned>(wanted < max_blocks ? wanted : max_blocks);
  return error;
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0; }

}  // namespace

cudaError_t copy(const void* from, void* to, size_t bytes, cudaStream_t stream) {
  // A view may begin anywhere; loads of 16 bytes need aligned addresses.
  const size_t vectors = aligned(from) && aligned(to) ? bytes / sizeof(uint4) : 0;
  const size_t done = vectors * sizeof(uint4);
  unsigned blocks = 0;
  if (vectors > 0) {
    if (const cudaError_t error = choose_blocks(vectors, &blocks)) return error;
    const cudaError_t error = launch(stream, {blocks, kThreads}, copy_vectors, static_cast<const uint4*>(from),
                                     static_cast<uint4*>(to), vectors);
    if (error != cudaSuccess) return error;
  }
  if (done == bytes) return cudaSuccess;
  if (const cudaError_t error = choose_blocks(bytes - done, &blocks)) return error;
  return launch(stream, {blocks, kThreads}, copy_bytes, static_cast<const uint8_t*>(from) + done,
                static_cast<uint8_t*>(to) + done, bytes - done);
}

}  // namespace adept::cuda
