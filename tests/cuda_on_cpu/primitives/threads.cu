// What one thread does: atomic operations, intrinsics, shared memory as a block finds it.

#include <cmath>

#include "../faults/faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kBlocks = 3;
constexpr int kThreads = 96;
constexpr unsigned kAll32 = kBlocks * kThreads;

struct Counters {
  int sum, least, most, less;
  unsigned bits, common, changed, wrapped, down;
  unsigned long long wide;
  float real;
};

__global__ void atomics(Counters* c) {
  pdl_wait();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  const int value = static_cast<int>(i) - 100;
  atomicAdd(&c->sum, value);
  atomicSub(&c->less, value);
  atomicMin(&c->least, value);
  atomicMax(&c->most, value);
  atomicOr(&c->bits, i);
  atomicAnd(&c->common, i | 512);
  atomicXor(&c->changed, i * i);
  atomicInc(&c->wrapped, 9);
  atomicDec(&c->down, 9);
  atomicAdd(&c->wide, 1ull << 32);
  atomicAdd(&c->real, 0.5f);
}

bool counts() {
  Global<Counters> memory(1);
  Counters& c = memory[0];
  c = {0, 1000, -1000, 0, 0, ~0u, 0, 0, 0, 0, 0};
  if (!ran({kBlocks, kThreads}, atomics, memory.data())) return false;
  int sum = 0;
  unsigned changed = 0;
  for (unsigned i = 0; i < kAll32; ++i) {
    sum += static_cast<int>(i) - 100;
    changed ^= i * i;
  }
  return c.sum == sum && c.less == -sum && c.least == -100 && c.most == static_cast<int>(kAll32) - 101 &&
         c.bits == 511 && c.common == 512 && c.changed == changed && c.wrapped == kAll32 % 10 &&
         c.down == (10 - kAll32 % 10) % 10 && c.wide == uint64_t{kAll32} << 32 && c.real == kAll32 / 2.0f;
}

// Every thread once: tickets are all different, and of those who compare one alone exchanges.
__global__ void tickets(unsigned* next, unsigned* seen, unsigned* winner) {
  pdl_wait();
  atomicAdd(&seen[atomicAdd(next, 1u)], 1u);
  atomicCAS(winner, 0u, blockIdx.x * kThreads + threadIdx.x + 1);
}

bool tickets_differ() {
  Global<unsigned> next(1), seen(kAll32), winner(1);
  return ran({kBlocks, kThreads}, tickets, next.data(), seen.data(), winner.data()) && seen.is_filled_with(1) &&
         winner[0] >= 1 && winner[0] <= kAll32;
}

bool intrinsics_are_right() {
  const unsigned x = 0x80c3f105u, y = 0x7e11aa42u;
  unsigned reversed = 0, bits = 0;
  for (int i = 0; i < 32; ++i) {
    if (x >> i & 1) reversed |= 0x80000000u >> i;
    bits += x >> i & 1;
  }
  int signed_dot = 5;
  for (int i = 0; i < 4; ++i) signed_dot += static_cast<int8_t>(x >> 8 * i) * static_cast<int8_t>(y >> 8 * i);
  const uint64_t both = uint64_t{y} << 32 | x;
  return __brev(x) == reversed && __popc(x) == static_cast<int>(bits) && __popcll(~0ull) == 64 && __ffs(0) == 0 &&
         __ffs(0x50) == 5 && __clz(0) == 32 && __clz(1) == 31 && __clzll(1) == 63 &&
         __byte_perm(x, y, 0x7410) == (0x7e000000u | (y & 0xff) << 16 | (x & 0xffff)) &&
         __byte_perm(x, y, 0x000b) == (0x05050500u | 0xff) && __umulhi(x, y) == uint64_t{x} * y >> 32 &&
         __mulhi(-5, 3) == -1 && __umul64hi(1ull << 63, 6) == 3 && __funnelshift_r(x, y, 12) == uint32_t(both >> 12) &&
         __funnelshift_l(x, y, 12) == uint32_t(both << 12 >> 32) && __funnelshift_l(x, y, 32) == y &&
         __dp4a(static_cast<int>(x), static_cast<int>(y), 5) == signed_dot && __float_as_uint(1.0f) == 0x3f800000u &&
         __int_as_float(0x40490fdb) > 3.14159f && __float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 &&
         std::fabs(rsqrtf(4.0f) - 0.5f) < 1e-7f && min(3u, 5) == 3u && max(-1.0f, NAN) == -1.0f;
}

bool halves_are_fused() {
  // 1 + 2^-10 squared, less 1 + 2^-9, is 2^-20: only where the product is not rounded.
  const __half x = __float2half(1.0009765625f), y = __float2half(-1.001953125f);
  const __half2 pair = __hfma2(__half2half2(x), __half2half2(x), __half2half2(y));
  const __nv_bfloat16 wide = __hfma(__nv_bfloat16(1.0078125f), __nv_bfloat16(1.0078125f), __nv_bfloat16(-1.015625f));
  return __half2float(__hfma(x, x, y)) == std::ldexp(1.0f, -20) && __low2float(pair) == std::ldexp(1.0f, -20) &&
         __high2float(pair) == std::ldexp(1.0f, -20) && __bfloat162float(wide) == std::ldexp(1.0f, -14);
}

// Shared memory never holds what the block before has left, in variables and beyond them.
__global__ void leftovers(int* out) {
  __shared__ int variable[kThreads];
  int* const dynamic = dynamic_shared<int>();
  pdl_wait();
  out[blockIdx.x * kThreads + threadIdx.x] = variable[threadIdx.x] == -1 && dynamic[threadIdx.x] == -1;
  variable[threadIdx.x] = dynamic[threadIdx.x] = 1;
}

bool nothing_is_left() {
  Global<int> out(kBlocks * kThreads);
  return ran({kBlocks, kThreads, kThreads * sizeof(int)}, leftovers, out.data()) && out.is_filled_with(1);
}

// A thread may change its arguments, which are its own.
__global__ void own_arguments(int* out, int value) {
  pdl_wait();
  value += static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = value - static_cast<int>(threadIdx.x);
}

bool arguments_are_copies() {
  Global<int> out(kThreads);
  return ran({1, kThreads}, own_arguments, out.data(), 40) && out.is_filled_with(40);
}

// Blocks in three dimensions, each once.
__global__ void places(unsigned* seen) {
  pdl_wait();
  atomicAdd(&seen[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x], 1u);
}

bool every_block_runs() {
  Global<unsigned> seen(2 * 3 * 5);
  return ran({dim3(5, 3, 2), 1}, places, seen.data()) && seen.is_filled_with(1);
}

bool device_is_small() {
  int count = 0, most = 0, blocks = 0;
  return multiprocessors(&count) == cudaSuccess && count == 4 && overlaps_launches() &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess &&
         allow_shared_bytes(places, static_cast<size_t>(most)) == cudaSuccess &&
         allow_shared_bytes(places, static_cast<size_t>(most) + 1) == cudaErrorInvalidValue &&
         cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess &&
         cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, places, 512, 100 * 1024) == cudaSuccess && blocks == 2;
}

const Registered kAll[] = {
    {"atomics", counts},
    {"tickets", tickets_differ},
    {"intrinsics", intrinsics_are_right},
    {"fused_halves", halves_are_fused},
    {"nothing_is_left_in_shared_memory", nothing_is_left},
    {"arguments_are_copies", arguments_are_copies},
    {"every_block_runs", every_block_runs},
    {"device_is_small", device_is_small},
};

}  // namespace
}  // namespace faults
