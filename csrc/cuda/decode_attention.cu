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

#include <cstdint>

#include "cuda/attention.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace adept::cuda {
namespace {

using namespace attention;

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
  const auto* keys = static_cast<const Element*>(cache.data) + head_offset(cache, attention.slots[token], blockIdx.y);
  const CachedRows key_rows(keys, part.chunks), value_rows(keys + value_offset(cache), part.chunks);
  part.store(part.over(key_rows, value_rows, static_cast<int>(begin), static_cast<int>(end), q), highest, totals, sums);
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
  __shared__ MergeShared shared;
  pdl_wait();
  pdl_launch_dependents();
  const int64_t token = blockIdx.y, head = token * attention.cache.heads + blockIdx.x;
  merge_head<WholeBlock>(attention, partials, splits, head, splits_of(length_of(attention, token)), shared);
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
