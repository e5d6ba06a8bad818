// Mistakes in the order of bulk copies and other accesses of the same memory.

#include "cuda/bulk_copy.cuh"
#include "cuda/grid_barrier.cuh"
#include "faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kThreads = 64;
constexpr uint32_t kBytes = kThreads * sizeof(int);

enum class Fenced { kByWriters, kByAnother, kByIssuer, kByIssuerTooEarly, kNot };

__device__ void begin(Mbarrier* landed) {
  if (threadIdx.x == 0) {
    mbarrier_init(landed, 1);
    mbarrier_fence_init();
  }
  __syncthreads();
  pdl_wait();
}

// What threads have written to global memory, a copy brings to shared memory.
template <Fenced kFenced>
__global__ void through_global(const int* x, int* held, int* out) {
  __shared__ __align__(16) int back[kThreads];
  __shared__ Mbarrier landed;
  begin(&landed);
  held[threadIdx.x] = x[threadIdx.x];
  const bool fences_early = kFenced == Fenced::kByIssuerTooEarly && threadIdx.x == 0;
  if (kFenced == Fenced::kByWriters || fences_early) fence_before_bulk_copies();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFenced == Fenced::kByIssuer) fence_before_bulk_copies();
    mbarrier_arrive_expecting(&landed, kBytes);
    copy_bulk(back, held, kBytes, &landed);
  }
  mbarrier_wait(&landed, 0);
  out[threadIdx.x] = back[threadIdx.x];
}

// A copy goes over what threads have written to shared memory, or only read there.
template <Fenced kFenced, bool kWritten>
__global__ void over_shared(const int* x, int* out) {
  __shared__ __align__(16) int held[kThreads];
  __shared__ Mbarrier landed, read;
  begin(&landed);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expecting(&landed, kBytes);
    copy_bulk(held, x, kBytes, &landed);
    mbarrier_init(&read, kThreads);
  }
  __syncthreads();
  mbarrier_wait(&landed, 0);
  int sum = held[kThreads - 1 - threadIdx.x];
  if (kWritten) {
    __syncthreads();
    held[threadIdx.x] = 2 * static_cast<int>(threadIdx.x);
  }
  if (kFenced == Fenced::kByWriters) fence_before_bulk_copies();
  mbarrier_arrive(&read);
  if (threadIdx.x == 0) {
    mbarrier_wait(&read, 0);
    if (kFenced == Fenced::kByIssuer) fence_before_bulk_copies();
    mbarrier_arrive_expecting(&landed, kBytes);
    copy_bulk(held, x, kBytes, &landed);
  }
  mbarrier_wait(&landed, 1);
  sum += held[threadIdx.x];
  out[threadIdx.x] = sum;
}

// What one block has written, a copy of another reads.
template <Fenced kFenced>
__global__ void between_blocks(const int* x, int* held, uint64_t* counter, int* out) {
  __shared__ __align__(16) int back[kThreads];
  __shared__ Mbarrier landed;
  begin(&landed);
  held[blockIdx.x * kThreads + threadIdx.x] = x[threadIdx.x] + static_cast<int>(blockIdx.x);
  if (kFenced == Fenced::kByWriters) fence_before_bulk_copies();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFenced == Fenced::kByAnother) fence_before_bulk_copies();
    add_and_release(counter);
    wait_until_reached(counter, gridDim.x);
    if (kFenced == Fenced::kByIssuer) fence_before_bulk_copies();
    mbarrier_arrive_expecting(&landed, kBytes);
    copy_bulk(back, held + (blockIdx.x + 1) % gridDim.x * kThreads, kBytes, &landed);
  }
  mbarrier_wait(&landed, 0);
  out[blockIdx.x * kThreads + threadIdx.x] = back[threadIdx.x] - static_cast<int>((blockIdx.x + 1) % gridDim.x);
}

// Memory that a copy reads is written again: after the copy has landed, or at once.
template <bool kFault>
__global__ void source_written(const int* x, int* held, int* out) {
  __shared__ __align__(16) int back[kThreads];
  __shared__ Mbarrier landed;
  begin(&landed);
  held[threadIdx.x] = x[threadIdx.x];
  fence_before_bulk_copies();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expecting(&landed, kBytes);
    copy_bulk(back, held, kBytes, &landed);
  }
  if (!kFault) mbarrier_wait(&landed, 0);
  held[threadIdx.x] = -1;
  mbarrier_wait(&landed, 0);
  out[threadIdx.x] = back[threadIdx.x];
}

template <void (*kKernel)(const int*, int*, int*)>
bool copies() {
  Global<int> x(kThreads, 1), held(kThreads), out(kThreads);
  if (!ran({1, kThreads}, kKernel, x.data(), held.data(), out.data())) return false;
  for (int i = 0; i < kThreads; ++i)
    if (out[i] != x[i]) return false;
  return true;
}

template <Fenced kFenced, bool kWritten>
bool copies_over() {
  Global<int> x(kThreads, 1), out(kThreads);
  return ran({1, kThreads}, over_shared<kFenced, kWritten>, x.data(), out.data()) &&
         out.is_filled_with(x[0] + x[kThreads - 1]);
}

template <Fenced kFenced>
bool copies_of_others() {
  constexpr int kBlocks = 4;
  Global<int> x(kThreads, 1), held(kBlocks * kThreads), out(kBlocks * kThreads);
  Global<uint64_t> counter(1);
  const Shape shape{kBlocks, kThreads};
  return ran(shape, between_blocks<kFenced>, x.data(), held.data(), counter.data(), out.data()) &&
         out.sum() == kBlocks * x.sum();
}

template <Fenced kFenced>
constexpr Run kThroughGlobal = copies<through_global<kFenced>>;

const Registered kAll[] = {
    {"copy_of_global_not_fenced", kThroughGlobal<Fenced::kByWriters>, kThroughGlobal<Fenced::kNot>},
    {"copy_of_global_fenced_early", kThroughGlobal<Fenced::kByIssuer>, kThroughGlobal<Fenced::kByIssuerTooEarly>},
    {"copy_over_shared_not_fenced", copies_over<Fenced::kByWriters, true>, copies_over<Fenced::kNot, true>},
    {"copy_over_shared_fenced_by_issuer", copies_over<Fenced::kByIssuer, true>},
    {"copy_over_what_was_read", copies_over<Fenced::kNot, false>},
    {"copy_of_others_not_fenced", copies_of_others<Fenced::kByWriters>, copies_of_others<Fenced::kNot>},
    {"copy_of_others_fenced_by_issuer", copies_of_others<Fenced::kByIssuer>},
    {"copy_of_others_fenced_by_another", copies_of_others<Fenced::kByAnother>},
    {"copy_source_written", copies<source_written<false>>, copies<source_written<true>>},
};

}  // namespace
}  // namespace faults
