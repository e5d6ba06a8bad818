// Mistakes in where a thread reads and writes.

#include "faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kThreads = 64;

template <bool kFault>
__global__ void static_shared_overrun(const int* x, int* out) {
  __shared__ int held[kThreads];
  pdl_wait();
  int* const to = held;
  to[threadIdx.x + (kFault ? 1 : 0)] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = held[(threadIdx.x + (kFault ? 1 : 0)) % (kThreads + 1)];
}

template <bool kFault>
__global__ void dynamic_shared_overrun(const int* x, int* out) {
  int* const held = dynamic_shared<int>();
  pdl_wait();
  held[threadIdx.x + (kFault ? 1 : 0)] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x + (kFault ? 1 : 0)];
}

template <bool kFault>
__global__ void global_overrun(const int* x, int* out) {
  pdl_wait();
  out[threadIdx.x] = x[threadIdx.x];
  if (kFault && threadIdx.x == 0) out[kThreads] = 0;
}

// A row of scratch memory of which one value is never written.
template <bool kFault>
__global__ void uninitialised_shared(const int* x, int* out) {
  __shared__ int held[kThreads];
  pdl_wait();
  if (!kFault || threadIdx.x != 5) held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x];
}

template <bool kFault>
__global__ void misaligned_load(const int* x, int* out) {
  pdl_wait();
  if (threadIdx.x >= kThreads / 4) return;
  const uint4 held = load_once(x + 4 * threadIdx.x + (kFault && threadIdx.x == 1 ? 1 : 0));
  memcpy(out + 4 * threadIdx.x, &held, sizeof(held));
}

// The same through a pointer, which no function of the emulator sees.
template <bool kFault>
__global__ void misaligned_pointer(const int* x, int* out) {
  pdl_wait();
  if (threadIdx.x >= kThreads / 4) return;
  const int* from = x + 4 * threadIdx.x + (kFault && threadIdx.x == 1 ? 1 : 0);
  const uint4 held = *reinterpret_cast<const uint4*>(from);
  memcpy(out + 4 * threadIdx.x, &held, sizeof(held));
}

template <bool kFault>
__global__ void missing_copy_wait(const int* x, int* out) {
  __shared__ __align__(16) int held[kThreads];
  pdl_wait();
  if (threadIdx.x < kThreads / 4) {
    copy_async(held + 4 * threadIdx.x, x + 4 * threadIdx.x);
    end_copies();
    wait_for_copies<kFault ? 1 : 0>();
  }
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x];
}

// A ring of one stage that is filled again while others still read it.
template <bool kFault>
__global__ void refilled_too_early(const int* x, int* out) {
  __shared__ __align__(16) int held[kThreads];
  pdl_wait();
  int sum = 0;
  for (int stage = 0; stage < 2; ++stage) {
    if (threadIdx.x < kThreads / 4) {
      copy_async(held + 4 * threadIdx.x, x + 4 * threadIdx.x);
      end_copies();
      wait_for_copies<0>();
    }
    __syncthreads();
    sum += held[kThreads - 1 - threadIdx.x];
    if (!kFault) __syncthreads();
  }
  out[kThreads - 1 - threadIdx.x] = sum / 2;
}

template <void (*kKernel)(const int*, int*)>
bool copies() {
  Global<int> x(kThreads, 1), out(kThreads);
  if (!ran({1, kThreads, kThreads * sizeof(int)}, kKernel, x.data(), out.data())) return false;
  for (int i = 0; i < kThreads; ++i)
    if (out[i] != x[i]) return false;
  return true;
}

template <bool kFault>
__global__ void much_shared(int* out) {
  pdl_wait();
  int* const held = dynamic_shared<int>();
  held[12 * 1024 + threadIdx.x] = 7;
  out[threadIdx.x] = held[12 * 1024 + threadIdx.x];
}

// More than 48 kB, without leave.
template <bool kFault>
bool fills_much_shared() {
  constexpr size_t kBytes = 64 * 1024;
  if (!kFault && allow_shared_bytes(much_shared<kFault>, kBytes) != cudaSuccess) return false;
  Global<int> out(32);
  return ran({1, 32, kBytes}, much_shared<kFault>, out.data()) && out.is_filled_with(7);
}

// What a launch may not be, a GPU refuses.
__global__ void nothing() { pdl_wait(); }

template <bool kFault>
bool launches() {
  return ran(kFault ? Shape{1, 1025} : Shape{1, 1024}, nothing) && ran({dim3(1, kFault ? 65536 : 65535), 1}, nothing) &&
         ran({kFault ? 0u : 1u, 1}, nothing);
}

#define COPIES(name) {#name, copies<name<false>>, copies<name<true>>}

const Registered kAll[] = {
    COPIES(static_shared_overrun),
    COPIES(dynamic_shared_overrun),
    COPIES(global_overrun),
    COPIES(uninitialised_shared),
    COPIES(misaligned_load),
    COPIES(misaligned_pointer),
    COPIES(missing_copy_wait),
    COPIES(refilled_too_early),
    {"much_shared", fills_much_shared<false>, fills_much_shared<true>},
    {"launch_too_large", launches<false>, launches<true>},
};

}  // namespace
}  // namespace faults
