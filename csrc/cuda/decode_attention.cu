// decode_attention: one query for each sequence over the keys and values in its slot.
//
// Layout: keys of a head are contiguous, [capacity, head_dim], and so are its values. A block takes one split of one
// head: 256 positions. A group of lanes reads the key and value of a position in loads of 16 bytes, four positions at a
// time, keeps its part of q and of the weighted sum in registers, and computes the softmax online (Milakov and
// Gimelshein 2018). The groups of a block, and then the splits of a head, are merged in a fixed order.
//
// Lower bound: the keys and values of the positions in use, read once: 268 MB at the 8B's 64 heads of 64 in 16 bits and
// 16384 positions, 89 us at 3.0 TB/s. Limit: memory bandwidth. A warp takes about 95 instructions for 1 kB, a third of
// what a multiprocessor can issue while 1 kB arrives. 18 kB a multiprocessor must be in flight (3.35 TB/s for 0.7 us,
// over 132); up to 112 kB are: 4 blocks of 256 threads (64 registers) with 7 loads of 16 bytes each.
//
// Splits have one length for every batch, bucket and device, so a sequence gets the same bits alone and in a batch. 256
// positions of a head are 64 kB, about 10 us with 4 blocks on a multiprocessor, against 2 us to start and end a block;
// the 264 bytes of a partial result add 0.8 % of bytes, which stay in L2. 512 positions of one sequence already occupy
// 128 of 132 multiprocessors; 16384 positions give 64 x 64 blocks, eight for each that can run at a time.

#include <cfloat>
#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kUnroll = 4;      // positions of a group at a time
constexpr int kMaxGroups = 32;  // the maximum for merge()
constexpr int64_t kMaxHeadDim = 256;
constexpr float kLowest = -FLT_MAX;  // finite, so that kLowest - kLowest is 0

// Results of the splits of each head, if there are several.
struct Partials {
  float* sums;      // [tokens, heads, splits, head_dim]: values, weighted by exp(score - highest)
  float2* softmax;  // [tokens, heads, splits]: the highest score, and the sum of the weights
};

__host__ __device__ int64_t splits_of(int64_t positions) { return (positions + kSplit - 1) / kSplit; }

// The number of positions that a token attends to.
__device__ int64_t length_of(const DecodeAttention& attention, int64_t token) {
  const int64_t slot = attention.slots[token], length = attention.lengths[token];
  if (!in_range(slot, attention.cache.slots) || length < 0) return 0;
  return length < attention.longest ? length : attention.longest;
}

// A softmax-weighted sum over some positions; this thread has kCount dimensions of it.
template <int kCount>
struct Softmax {
  float highest = kLowest;
  float total = 0;
  float sums[kCount] = {};

  // Rescales the sums to a new highest score.
  __device__ void raise(float to) {
    const float correction = __expf(highest - to);
    highest = to;
    total *= correction;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] *= correction;
  }
};

// Merges the sums of `groups` parts of the positions: one thread calls `store(column, value, highest, total)` for each
// dimension, with a value not yet divided by the total. The arrays are in shared memory, [groups] or [groups,
// head_dim].
template <class Store>
__device__ void merge(const float* highest, const float* totals, const float* sums, int groups, int head_dim,
                      Store store) {
  const int lane = threadIdx.x % kWarpSize;
  const float mine = lane < groups ? highest[lane] : kLowest;
  const float max = warp_max(mine);
  const float weight = __expf(mine - max);
  const float total = warp_sum(lane < groups ? totals[lane] * weight : 0);
  for (int column = threadIdx.x; column - lane < head_dim; column += kThreads) {
    float value = 0;
    for (int group = 0; group < groups; ++group) {
      const float share = __shfl_sync(kWholeWarp, weight, group);
      if (column < head_dim) value += share * sums[group * head_dim + column];
    }
    if (column < head_dim) store(column, value, max, total);
  }
}

// kLanes lanes read a position in kChunks loads of 16 bytes each.
template <class Element, int kLanes, int kChunks>
struct Split {
  static constexpr int kGroups = kWarpSize / kLanes;  // in a warp
  static constexpr int kColumns = kChunks * kVector<Element>;
  using Loads = uint4[kUnroll][kChunks];

  const DecodeAttention& attention;
  int lane;  // in its group
  int group;
  int chunks;  // of a position

  __device__ explicit Split(const DecodeAttention& attention)
      : attention(attention),
        lane(threadIdx.x % kLanes),
        group(threadIdx.x % kWarpSize / kLanes),
        chunks(static_cast<int>(attention.cache.head_dim) / kVector<Element>) {}

  __device__ int chunk(int i) const { return lane + i * kLanes; }

  // Zeros for dimensions past the end.
  __device__ void load_query(const float* from, float (&q)[kColumns]) const {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int at = chunk(i / kVector<Element>);
      q[i] = at < chunks ? from[at * kVector<Element> + i % kVector<Element>] * attention.scale : 0;
    }
  }

  // Loads positions first, first + kGroups, ...; zeros from `end` on.
  __device__ void load(const uint4* rows, int first, int end, Loads& out) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int position = first + u * kGroups;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const bool exists = position < end && chunk(i) < chunks;
        out[u][i] = exists ? load_once(rows + int64_t{position} * chunks + chunk(i)) : uint4{0, 0, 0, 0};
      }
    }
  }

  __device__ float score(const uint4 (&key)[kChunks], const float (&q)[kColumns]) const {
    float product = 0;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      float widened[kVector<Element>];
      widen<Element>(key[i], widened);
#pragma unroll
      for (int j = 0; j < kVector<Element>; ++j) product += widened[j] * q[i * kVector<Element> + j];
    }
    return warp_sum<kLanes>(product);
  }

  __device__ void add(const Loads& keys, const Loads& values, int first, int end, const float (&q)[kColumns],
                      Softmax<kColumns>& state) const {
    float scores[kUnroll];
    float highest = state.highest;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      scores[u] = score(keys[u], q);
      if (first + u * kGroups < end) highest = fmaxf(highest, scores[u]);
    }
    state.raise(highest);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const float below = scores[u] - highest;
      // The product with 0 turns an infinity into NaN, which the exponential would hide.
      const float weight = first + u * kGroups < end ? fmaf(below, 0.0f, __expf(below)) : 0;
      state.total += weight;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        float widened[kVector<Element>];
        widen<Element>(values[u][i], widened);
#pragma unroll
        for (int j = 0; j < kVector<Element>; ++j) state.sums[i * kVector<Element> + j] += weight * widened[j];
      }
    }
  }

  // Attends to positions begin to end (excluded) of the head whose keys begin at `head`.
  __device__ Softmax<kColumns> over(int64_t head, int begin, int end, const float (&q)[kColumns]) const {
    const Element* keys_at = static_cast<const Element*>(attention.cache.data) + head;
    const auto* key_rows = reinterpret_cast<const uint4*>(keys_at);
    const auto* value_rows = reinterpret_cast<const uint4*>(keys_at + value_offset(attention.cache));
    constexpr int kWarpRows = kGroups * kUnroll;
    Softmax<kColumns> state;
    for (int first = begin + threadIdx.x / kWarpSize * kWarpRows; first < end; first += kWarps * kWarpRows) {
      Loads keys, values;
      load(key_rows, first + group, end, keys);
      load(value_rows, first + group, end, values);
      add(keys, values, first + group, end, q, state);
    }
    return state;
  }

  __device__ void store(const Softmax<kColumns>& state, float* highest, float* totals, float* sums) const {
    const int row = threadIdx.x / kWarpSize * kGroups + group;
    if (lane == 0) {
      highest[row] = state.highest;
      totals[row] = state.total;
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int at = chunk(i / kVector<Element>);
      if (at < chunks) sums[(row * chunks + at) * kVector<Element> + i % kVector<Element>] = state.sums[i];
    }
  }
};

// One split of one head. If partials.sums is null, there is only one split, and the result is final.
template <class Element, int kLanes, int kChunks>
__global__ void __launch_bounds__(kThreads) attend(const DecodeAttention attention, const Partials partials) {
  using Part = Split<Element, kLanes, kChunks>;
  constexpr int kRows = kWarps * Part::kGroups;
  static_assert(kRows <= kMaxGroups, "more groups than merge() takes");
  __shared__ float highest[kRows], totals[kRows];
  __shared__ float sums[kRows * kLanes * Part::kColumns];
  pdl_wait();
  pdl_launch_dependents();
  const CacheLayer& cache = attention.cache;
  const int64_t token = blockIdx.z, head = token * cache.heads + blockIdx.y;
  const int64_t length = length_of(attention, token), begin = int64_t{blockIdx.x} * kSplit;
  const int head_dim = static_cast<int>(cache.head_dim);
  const Part part(attention);
  float q[Part::kColumns];
  part.load_query(attention.q + head * head_dim, q);
  if (begin >= length) {
    if (partials.sums == nullptr)
      for (int column = threadIdx.x; column < head_dim; column += kThreads) attention.out[head * head_dim + column] = 0;
    return;
  }
  const int64_t end = begin + kSplit < length ? begin + kSplit : length;
  part.store(part.over(head_offset(cache, attention.slots[token], blockIdx.y), static_cast<int>(begin),
                       static_cast<int>(end), q),
             highest, totals, sums);
  __syncthreads();
  const int64_t at = head * gridDim.x + blockIdx.x;
  merge(highest, totals, sums, kRows, head_dim, [&](int column, float value, float max, float total) {
    if (partials.sums == nullptr) {
      attention.out[head * head_dim + column] = value / total;
      return;
    }
    partials.sums[at * head_dim + column] = value;
    if (column == 0) partials.softmax[at] = {max, total};
  });
}

// Merges the splits of one head: part p of the block takes splits p, p + parts, ..., four dimensions a thread.
__global__ void __launch_bounds__(kThreads)
    merge_splits(const DecodeAttention attention, const Partials partials, int64_t splits) {
  __shared__ float highest[kMaxGroups], totals[kMaxGroups];
  __shared__ float sums[4 * kThreads];
  pdl_wait();
  pdl_launch_dependents();
  const int head_dim = static_cast<int>(attention.cache.head_dim), threads = head_dim / 4;  // for each split
  const int64_t token = blockIdx.y, head = token * attention.cache.heads + blockIdx.x;
  const int64_t used = splits_of(length_of(attention, token));
  const int parts = min(kThreads / threads, kMaxGroups);
  const int part = threadIdx.x / threads, column = threadIdx.x % threads * 4;
  Softmax<4> state;
  if (part < parts) {
#pragma unroll 4
    for (int64_t split = part; split < used; split += parts) {
      const float2 softmax = partials.softmax[head * splits + split];
      const float* at = partials.sums + (head * splits + split) * head_dim + column;
      const float4 values = *reinterpret_cast<const float4*>(at);
      state.raise(fmaxf(state.highest, softmax.x));
      const float weight = __expf(softmax.x - state.highest);
      state.total += weight * softmax.y;
      state.sums[0] += weight * values.x;
      state.sums[1] += weight * values.y;
      state.sums[2] += weight * values.z;
      state.sums[3] += weight * values.w;
    }
    if (column == 0) {
      highest[part] = state.highest;
      totals[part] = state.total;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[part * head_dim + column + i] = state.sums[i];
  }
  __syncthreads();
  merge(highest, totals, sums, parts, head_dim, [&](int at, float value, float, float total) {
    attention.out[head * head_dim + at] = used > 0 ? value / total : 0;
  });
}

int64_t heads_of(const DecodeAttention& attention) { return attention.tokens * attention.cache.heads; }

Partials partials_in(void* workspace, const DecodeAttention& attention, int64_t splits) {
  if (splits <= 1) return {nullptr, nullptr};
  float* sums = static_cast<float*>(workspace);
  const int64_t count = heads_of(attention) * splits * attention.cache.head_dim;
  return {sums, reinterpret_cast<float2*>(sums + count)};
}

template <class Element, int kLanes, int kChunks>
cudaError_t attend_and_merge(const DecodeAttention& attention, void* workspace, cudaStream_t stream) {
  const int64_t splits = splits_of(attention.longest);
  const auto heads = static_cast<unsigned>(attention.cache.heads), tokens = static_cast<unsigned>(attention.tokens);
  const Partials partials = partials_in(workspace, attention, splits);
  const Shape shape{dim3(splits > 0 ? static_cast<unsigned>(splits) : 1, heads, tokens), dim3(kThreads)};
  const cudaError_t error = launch(stream, shape, attend<Element, kLanes, kChunks>, attention, partials);
  if (error != cudaSuccess || splits <= 1) return error;
  return launch(stream, {dim3(heads, tokens), dim3(kThreads)}, merge_splits, attention, partials, splits);
}

// With the fewest lanes that can read a position at once.
template <class Element>
cudaError_t attend_of(const DecodeAttention& attention, void* workspace, cudaStream_t stream) {
  const int64_t chunks = attention.cache.head_dim / kVector<Element>;
  if (chunks <= 8) return attend_and_merge<Element, 8, 1>(attention, workspace, stream);
  if (chunks <= 16) return attend_and_merge<Element, 16, 1>(attention, workspace, stream);
  if (chunks <= 32) return attend_and_merge<Element, 32, 1>(attention, workspace, stream);
  return attend_and_merge<Element, 32, kMaxHeadDim / kVector<Element> / 32>(attention, workspace, stream);
}

}  // namespace

int64_t decode_attention_workspace_bytes(const DecodeAttention& attention) {
  const CacheLayer& cache = attention.cache;
  return attention_partials_bytes(attention.tokens, cache.heads, cache.head_dim, attention.longest);
}

cudaError_t decode_attention(const DecodeAttention& attention, void* workspace, cudaStream_t stream) {
  const CacheLayer& cache = attention.cache;
  if (attention.tokens == 0 || cache.heads == 0 || cache.head_dim == 0) return cudaSuccess;
  if (cache.head_dim % 8 != 0 || cache.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  if (!fits_grid(splits_of(attention.longest), cache.heads, attention.tokens)) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(cache.data) % sizeof(uint4) != 0) return cudaErrorMisalignedAddress;
  switch (cache.format) {
    case Format::kFloat16: return attend_of<__half>(attention, workspace, stream);
    case Format::kBFloat16: return attend_of<__nv_bfloat16>(attention, workspace, stream);
    default: return attend_of<float>(attention, workspace, stream);
  }
}

}  // namespace adept::cuda
