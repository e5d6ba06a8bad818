// Mistakes between blocks, and between one kernel and the next.

#include "faults.h"
#include "runtime/overlap.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kBlocks = 8;
constexpr int kThreads = 64;

// A block that reads what the one before it has written.
template <bool kFault>
__global__ void order_of_blocks(const int* x, int* prefix) {
  pdl_wait();
  if (threadIdx.x != 0) return;
  int sum = 0;
  if (kFault) {
    sum = (blockIdx.x > 0 ? prefix[blockIdx.x - 1] : 0) + x[blockIdx.x];
  } else {
    for (unsigned i = 0; i <= blockIdx.x; ++i) sum += x[i];
  }
  prefix[blockIdx.x] = sum;
}

template <bool kFault>
bool sums_before() {
  Global<int> x(kBlocks, 1), prefix(kBlocks);
  if (!ran({kBlocks, 32}, order_of_blocks<kFault>, x.data(), prefix.data())) return false;
  for (int i = 0, sum = 0; i < kBlocks; ++i)
    if (prefix[i] != (sum += x[i])) return false;
  return true;
}

// Each block writes its own share, but two of them the same value.
template <bool kFault>
__global__ void overlapping_shares(const int* x, int* out) {
  pdl_wait();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  out[i] = x[i];
  if (kFault && threadIdx.x == 0 && blockIdx.x > 0) out[i - 1] = x[i - 1];
}

template <bool kFault>
bool copies() {
  Global<int> x(kBlocks * kThreads, 1), out(kBlocks * kThreads);
  return ran({kBlocks, kThreads}, overlapping_shares<kFault>, x.data(), out.data()) && out.sum() == x.sum();
}

enum class Fenced { kByOne, kByAll, kNot, kByWritersOnly, kByReaderTooLate };

// The block that comes last adds up what all have written. Without a fence of those who write nobody promises that it
// sees them, nor without one of the thread that learns that all are there, before others go by its word.
template <Fenced kFenced>
__global__ void last_block(const int* x, int* parts, unsigned* arrived, int* sum) {
  __shared__ bool is_last;
  pdl_wait();
  const int part = warp_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (lane() == 0) parts[blockIdx.x * 2 + warp()] = part;
  if (kFenced != Fenced::kByOne && kFenced != Fenced::kNot) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFenced == Fenced::kByOne) __threadfence();
    is_last = atomicInc(arrived, kBlocks - 1) == kBlocks - 1;
    if (kFenced != Fenced::kByWritersOnly && kFenced != Fenced::kByReaderTooLate) __threadfence();
  }
  __syncthreads();
  if (!is_last || threadIdx.x != 32) return;
  if (kFenced == Fenced::kByReaderTooLate) __threadfence();
  int total = 0;
  for (int i = 0; i < kBlocks * 2; ++i) total += parts[i];
  *sum = total;
}

template <Fenced kFenced>
bool sums() {
  Global<int> x(kBlocks * kThreads, 1), parts(kBlocks * 2), sum(1);
  Global<unsigned> arrived(1);
  for (int repeat = 0; repeat < 2; ++repeat) {
    sum[0] = 0;
    const Shape shape{kBlocks, kThreads};
    if (!ran(shape, last_block<kFenced>, x.data(), parts.data(), arrived.data(), sum.data())) return false;
    if (sum[0] != x.sum()) return false;
  }
  return true;
}

// One kernel doubles what the one before it has written.
template <bool kWaits>
__global__ void doubled(const int* x, int* out) {
  if (kWaits) pdl_wait();
  const int value = 2 * x[threadIdx.x];
  if (!kWaits) pdl_wait();
  out[threadIdx.x] = value;
}

template <bool kFault>
bool doubles_twice() {
  Global<int> x(kThreads, 1), twice(kThreads), result(kThreads);
  return ran({1, kThreads}, doubled<true>, x.data(), twice.data()) &&
         ran({1, kThreads}, doubled<!kFault>, twice.data(), result.data()) && result.sum() == 4 * x.sum();
}

// The same where the earlier kernel was of another operator.
template <bool kFault>
bool doubles_an_input() {
  Global<int> x(kThreads, 1), out(kThreads);
  cuda_on_cpu::add_input(x.data(), kThreads * sizeof(int));
  cuda_on_cpu::begin_operator();
  return ran({1, kThreads}, doubled<!kFault>, x.data(), out.data()) && out.sum() == 2 * x.sum();
}

// Only thread 0 waits, and the barrier lets the others read; what they read may not be there for them yet.
template <bool kFault>
__global__ void waits_for_others(const int* x, int* out) {
  if (!kFault || threadIdx.x == 0) pdl_wait();
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

template <bool kFault>
bool copies_after_one() {
  Global<int> x(kThreads, 1), out(kThreads);
  return ran({1, kThreads}, waits_for_others<kFault>, x.data(), out.data()) && out.sum() == x.sum();
}

// It reads nothing of an earlier kernel, and yet writes where that one may still read.
template <bool kFault>
__global__ void cleared(int* out) {
  if (!kFault) pdl_wait();
  out[threadIdx.x] = 0;
  if (kFault) pdl_wait();
}

template <bool kFault>
bool clears() {
  Global<int> x(kThreads, 1);
  return ran({1, kThreads}, cleared<kFault>, x.data()) && x.sum() == 0;
}

template <bool kFault>
__global__ void waits_twice(int* out) {
  pdl_wait();
  if (kFault && threadIdx.x == 3) pdl_wait();
  out[threadIdx.x] = 5;
}

template <bool kFault>
bool fills() {
  Global<int> out(kThreads);
  return ran({1, kThreads}, waits_twice<kFault>, out.data()) && out.is_filled_with(5);
}

const Registered kAll[] = {
    {"order_of_blocks", sums_before<false>, sums_before<true>},
    {"overlapping_shares", copies<false>, copies<true>},
    {"missing_fence", sums<Fenced::kByOne>, sums<Fenced::kNot>},
    {"missing_fence_of_all", sums<Fenced::kByAll>, sums<Fenced::kNot>},
    {"missing_fence_of_reader", sums<Fenced::kByAll>, sums<Fenced::kByWritersOnly>},
    {"fence_of_another_reader", sums<Fenced::kByOne>, sums<Fenced::kByReaderTooLate>},
    {"missing_wait", doubles_twice<false>, doubles_twice<true>},
    {"missing_wait_for_input", doubles_an_input<false>, doubles_an_input<true>},
    {"wait_of_one_thread", copies_after_one<false>, copies_after_one<true>},
    {"write_before_wait", clears<false>, clears<true>},
    {"second_wait", fills<false>, fills<true>},
};

}  // namespace
}  // namespace faults
