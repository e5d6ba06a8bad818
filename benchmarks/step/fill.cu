// Fills memory for the measurements. Layout: a thread takes every so many elements; the floor is what is written.
#include "fill.h"

#include <algorithm>
#include <numeric>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace adept::bench {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kBlocksPerMultiprocessor = 8;

__host__ __device__ uint32_t mixed(uint32_t i, uint32_t seed) {
  uint32_t h = i * 0x9e3779b1u + seed * 0x85ebca77u;
  h ^= h >> 15;
  h *= 0x2c1b3c6du;
  h ^= h >> 12;
  h *= 0x297a2d39u;
  return h ^ h >> 15;
}

__device__ float unit_of(uint32_t hash) { return static_cast<float>(hash >> 16) / 32768.0f - 1.0f; }

struct Line {
  float mean;
  float size;
  __device__ void store(uint32_t hash, float* to) const { *to = mean + size * unit_of(hash); }
  __device__ void store(uint32_t hash, __half* to) const { *to = __float2half_rn(mean + size * unit_of(hash)); }
};

struct Byte {
  __device__ void store(uint32_t hash, uint8_t* to) const { *to = static_cast<uint8_t>(hash >> 24); }
};

struct Float8 {
  __device__ void store(uint32_t hash, uint8_t* to) const {
    *to = static_cast<uint8_t>((hash >> 24 & 0x80u) | (0x28u + (hash >> 16 & 15u)));
  }
};

template <class Element, class Rule>
__global__ void __launch_bounds__(kThreads) fill_with(Element* to, int64_t count, uint32_t seed, Rule rule) {
  cuda::pdl_wait();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    rule.store(mixed(static_cast<uint32_t>(i), seed), to + i);
  }
}

template <class Element, class Rule>
void run(Element* to, int64_t count, uint32_t seed, const Rule& rule) {
  if (count == 0) return;
  int multiprocessors = 0;
  check(cuda::multiprocessors(&multiprocessors), "asking for the multiprocessors");
  const int64_t blocks =
      std::min<int64_t>((count + kThreads - 1) / kThreads, kBlocksPerMultiprocessor * multiprocessors);
  const cuda::Shape shape{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  check(cuda::launch(nullptr, shape, fill_with<Element, Rule>, to, count, seed, rule), "filling memory");
}

template <class Element, class Rule>
void run(const Buffer<Element>& to, uint32_t seed, const Rule& rule) {
  run(to.get(), to.count(), seed, rule);
}

}  // namespace

uint32_t hash_of(uint32_t i, uint32_t seed) { return mixed(i, seed); }

void fill(const Buffer<float>& to, float mean, float size, uint32_t seed) { run(to, seed, Line{mean, size}); }

void fill(const Buffer<__half>& to, float mean, float size, uint32_t seed) { run(to, seed, Line{mean, size}); }

void fill(__half* to, int64_t count, float mean, float size, uint32_t seed) { run(to, count, seed, Line{mean, size}); }

void fill_bytes(const Buffer<uint8_t>& to, uint32_t seed) { run(to, seed, Byte{}); }

void fill_float8(const Buffer<uint8_t>& to, uint32_t seed) { run(to, seed, Float8{}); }

std::vector<bool> choose(int64_t count, int64_t chosen, uint32_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count - 1; i > 0; --i) {
    std::swap(order[i], order[hash_of(static_cast<uint32_t>(i), seed) % static_cast<uint32_t>(i + 1)]);
  }
  std::vector<bool> is_chosen(static_cast<size_t>(count));
  for (int64_t i = 0; i < chosen; ++i) is_chosen[static_cast<size_t>(order[i])] = true;
  return is_chosen;
}

}  // namespace adept::bench
