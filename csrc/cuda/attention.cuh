// Attention of one query to a split of its sequence's positions, by 8 warps, and the merge of a head's splits.
// decode_attention.cu has the layout and the order.
#pragma once

#include <cfloat>
#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/workspace.h"

namespace adept::cuda::attention {

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

__host__ __device__ inline int64_t splits_of(int64_t positions) { return (positions + kSplit - 1) / kSplit; }

// The number of positions that a token attends to.
__device__ inline int64_t length_of(const DecodeAttention& attention, int64_t token) {
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

  // Loads positions first, first + kGroups, ...; zeros from `end` on. `rows(position, i)`: 16 bytes of a row.
  template <class Rows>
  __device__ void load(const Rows& rows, int first, int end, Loads& out) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int position = first + u * kGroups;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const bool exists = position < end && chunk(i) < chunks;
        out[u][i] = exists ? rows(position, chunk(i)) : uint4{0, 0, 0, 0};
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

  // Attends to positions begin to end (excluded).
  template <class Keys, class Values>
  __device__ Softmax<kColumns> over(const Keys& key_rows, const Values& value_rows, int begin, int end,
                                    const float (&q)[kColumns]) const {
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

// Rows of the cache, the first of which is at `rows`.
struct CachedRows {
  const uint4* rows;
  int chunks;

  __device__ CachedRows(const void* rows, int chunks) : rows(static_cast<const uint4*>(rows)), chunks(chunks) {}
  __device__ uint4 operator()(int position, int chunk) const {
    return load_once(rows + int64_t{position} * chunks + chunk);
  }
};

struct MergeShared {
  float highest[kMaxGroups], totals[kMaxGroups];
  float sums[4 * kThreads];
};

// Merges the first `used` of a head's splits: part p of the team takes splits p, p + parts, ..., four dimensions a
// thread. `head`: of all tokens' heads.
template <class Team>
__device__ void merge_head(const DecodeAttention& attention, const Partials& partials, int64_t splits, int64_t head,
                           int64_t used, MergeShared& shared) {
  const int head_dim = static_cast<int>(attention.cache.head_dim), threads = head_dim / 4;  // for each split
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
      shared.highest[part] = state.highest;
      shared.totals[part] = state.total;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.sums[part * head_dim + column + i] = state.sums[i];
  }
  Team::sync();
  merge(shared.highest, shared.totals, shared.sums, parts, head_dim, [&](int at, float value, float, float total) {
    attention.out[head * head_dim + at] = used > 0 ? value / total : 0;
  });
}

}  // namespace adept::cuda::attention
