// prefill_attention: consecutive queries of one sequence over the keys and values in its slot, causal.
//
// Layout: a block takes one head and the queries of 128 positions, a warp 16 of them. Keys and values come in tiles of
// 64 positions (of 32 for heads of more than 128), by asynchronous copies into two buffers in shared memory; a row is
// padded by 16 bytes, so that the 8 rows of a matrix for the tensor cores are in different banks. A warp scores half a
// tile at a time. Scores, softmax (online, as in decode_attention) and sums are float32 in registers; weights are
// rounded for the second product.
//
// Order: tiles of queries and of positions begin at multiples of their sizes from position 0 of the sequence, and a
// warp reads the tiles up to its own queries in ascending order. So a query has the same place in a tile and the same
// sums however the prompt is cut. The 16 positions of a warp's own queries are added without tensor cores, each to the
// queries that see it: a product with a weight of 0 could let a NaN through, and whether it changes how the tensor
// cores round the other terms is not known. Later positions are not added, and those that no query of the call sees not
// read.
//
// Lower bound: tensor cores, at the 8B's 64 heads of 64. 512 queries before position 16384 are 137 GFLOP, 225 us at the
// 610 TFLOP/s that mma.sync is expected to reach of an H100's 989; before position 512, 1.3 GFLOP. Limit: shared
// memory. For 64 positions a warp loads matrices of 16 kB, 128 cycles of a multiprocessor, so four warps take 512
// cycles, beside 64 products of 6 cycles and 320 instructions on each of the four tensor cores and schedulers (counted
// in the code for 9.0): 290 us before position 16384. Keys and values come 4 times from L2 then, 1.1 GB. 16 warps a
// multiprocessor (128 registers) hide the softmax of one behind the products of others.

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/formats.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace adept::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kWarpQueries = 16;  // rows of a product
constexpr int kQueries = kWarps * kWarpQueries;
constexpr int kStep = 16;  // columns of a product's first operand
constexpr float kLowest = -FLT_MAX;
constexpr float kLog2E = 1.44269504f;  // exp(x) = 2^(x log2(e))

// The keys or values of a tile of positions, in shared memory. kDims: head_dim, padded with zeros.
template <int kDims>
struct Tile {
  static constexpr int kPositions = kDims <= 128 ? 64 : 32;
  static constexpr int kPart = kPositions / 2;  // positions whose scores a warp holds at a time
  static constexpr int kChunks = kDims / 8;     // 16 bytes each
  static constexpr int kStride = kDims + 8;     // elements
  static constexpr int kElements = kPositions * kStride;
};

template <int kDims>
constexpr size_t kSharedBytes = 4 * Tile<kDims>::kElements * sizeof(uint16_t);

// Copies tiles of a head's keys and values to two buffers in shared memory.
template <int kDims>
struct Copies {
  using Of = Tile<kDims>;
  static constexpr int kRows = kThreads / Of::kChunks;  // that the block copies at a time

  const uint16_t* key_rows;  // of the head
  const uint16_t* value_rows;
  int head_dim;
  int end;

  // Of a tile; its values are kElements later.
  static __device__ uint16_t* keys(int tile) { return dynamic_shared<uint16_t>() + tile % 2 * 2 * Of::kElements; }

  // Starts the copies of a tile, one group. Positions from `end` on and dimensions past the head's become zeros.
  __device__ void start(int tile) const {
    const int row = threadIdx.x / Of::kChunks, dim = threadIdx.x % Of::kChunks * 8;
    uint16_t* const to = keys(tile) + row * Of::kStride + dim;
#pragma unroll
    for (int i = 0; i < Of::kPositions; i += kRows) {
      const int position = tile * Of::kPositions + i + row;
      const bool exists = position < end && dim < head_dim;
      const int at = exists ? position * head_dim + dim : 0;
      copy_async(to + i * Of::kStride, key_rows + at, exists ? 16 : 0);
      copy_async(to + Of::kElements + i * Of::kStride, value_rows + at, exists ? 16 : 0);
    }
    end_copies();
  }
};

// The state of a warp's 16 queries. With g = lane / 4 and t = lane % 4, a lane has queries g and g + 8, and of every 8
// positions or dimensions 2t and 2t + 1: [0] and [1] of query g, [2] and [3] of g + 8.
template <Format kFormat, int kDims>
struct Queries {
  using Of = Tile<kDims>;
  static constexpr int kScoreTiles = Of::kPart / 8;

  uint32_t q[kDims / kStep][4];
  float sums[kDims / 8][4] = {};
  float highest[2] = {kLowest, kLowest};
  float totals[2] = {0, 0};  // of this lane's positions

  static __device__ int group() { return threadIdx.x % kWarpSize / 4; }
  static __device__ int within() { return threadIdx.x % 4; }

  // Zeros for positions before the first query and after the last. `first`: the position of query 0.
  __device__ void load(const PrefillAttention& attention, int head, int first) {
    const int head_dim = static_cast<int>(attention.cache.head_dim);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first + group() + half * 8 - static_cast<int>(attention.start);
      const bool exists = token >= 0 && token < attention.tokens;
      const float* const row = attention.q + (token * attention.cache.heads + head) * head_dim + within() * 2;
#pragma unroll
      for (int i = 0; i < kDims / 8; ++i) {
        float2 pair = {0, 0};
        if (exists && i * 8 < head_dim) pair = {row[i * 8], row[i * 8 + 1]};
        // Scaled before it is rounded: the product could overflow in float16.
        q[i / 2][i % 2 * 2 + half] = Element<kFormat>::pack(pair.x * attention.scale, pair.y * attention.scale);
      }
    }
  }

  __device__ void multiply_keys(const uint16_t* keys, float (&scores)[kScoreTiles][4]) const {
    const int lane = threadIdx.x % kWarpSize;
    const uint16_t* const of_lane = keys + (lane % 8 + lane / 16 * 8) * Of::kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kDims / kStep; ++k)
#pragma unroll
      for (int n = 0; n < kScoreTiles; n += 2) {
        uint32_t pairs[2][2];  // of 8 positions each
        load_matrices(pairs, of_lane + n * 8 * Of::kStride + k * kStep);
        Element<kFormat>::multiply_add(scores[n], q[k], pairs[0]);
        Element<kFormat>::multiply_add(scores[n + 1], q[k], pairs[1]);
      }
  }

  // Turns scores into weights, exp(score - highest), and rescales the sums to the new highest scores.
  __device__ void weigh(float (&scores)[kScoreTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = highest[half];
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) max = fmaxf(max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      max = fmaxf(max, __shfl_xor_sync(kWholeWarp, max, 1));
      max = fmaxf(max, __shfl_xor_sync(kWholeWarp, max, 2));
      // All exponents of a query are off by the rounding of `offset`, which cancels in the quotient.
      const float offset = __fmul_rn(max, kLog2E);
      const float correction = exp2_fast(__fmul_rn(highest[half], kLog2E) - offset);
      highest[half] = max;
      // Most positions raise no maximum; a product with 1 would change no bit.
      if (__any_sync(kWholeWarp, !(correction == 1))) {
        totals[half] *= correction;
#pragma unroll
        for (int n = 0; n < kDims / 8; ++n) {
          sums[n][2 * half] *= correction;
          sums[n][2 * half + 1] *= correction;
        }
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = exp2_fast(fmaf(scores[n][i], kLog2E, -offset));
          totals[half] += scores[n][i];
        }
    }
  }

  // Adds the values of positions 16 step to 16 step + 15 of a part.
  __device__ void add_step(const uint16_t* values, int step, const float (&weights)[kScoreTiles][4]) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t a[4] = {Element<kFormat>::pack(weights[2 * step][0], weights[2 * step][1]),
                           Element<kFormat>::pack(weights[2 * step][2], weights[2 * step][3]),
                           Element<kFormat>::pack(weights[2 * step + 1][0], weights[2 * step + 1][1]),
                           Element<kFormat>::pack(weights[2 * step + 1][2], weights[2 * step + 1][3])};
    const uint16_t* const of_lane = values + (step * kStep + lane % 16) * Of::kStride + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kDims / 8; n += 2) {
      uint32_t pairs[2][2];  // of 8 dimensions each
      load_matrices_transposed(pairs, of_lane + n * 8);
      Element<kFormat>::multiply_add(sums[n], a, pairs[0]);
      Element<kFormat>::multiply_add(sums[n + 1], a, pairs[1]);
    }
  }

  // The same for the positions of the queries themselves, each of which sees those up to its own.
  __device__ void add_own(const uint16_t* values, int step, const float (&weights)[kScoreTiles][4]) {
    float own[2][4] = {};  // of positions 0 to 7 and 8 to 15
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (n / 2 == step) own[n % 2][i] = weights[n][i];
    const uint16_t* const of_lane = values + step * kStep * Of::kStride + within() * 2;
#pragma unroll 1
    for (int from = 0; from < 4; ++from)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = i / 2 * 8 + from * 2 + i % 2, lane = group() * 4 + from;
        const float first = __shfl_sync(kWholeWarp, own[i / 2][i % 2], lane);
        const float second = __shfl_sync(kWholeWarp, own[i / 2][i % 2 + 2], lane);
#pragma unroll
        for (int n = 0; n < kDims / 8; ++n) {
          const float2 value = widen_pair(of_lane + position * Of::kStride + n * 8);
          if (position <= group()) {
            sums[n][0] += first * value.x;
            sums[n][1] += first * value.y;
          }
          if (position <= group() + 8) {
            sums[n][2] += second * value.x;
            sums[n][3] += second * value.y;
          }
        }
      }
  }

  __device__ static float2 widen_pair(const uint16_t* at) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(at);
    if constexpr (kFormat == Format::kBFloat16) return {bits_as<float>(pair << 16), bits_as<float>(pair & 0xffff0000u)};
    return __half22float2(bits_as<__half2>(pair));
  }

  // A part of a tile that all queries see.
  __device__ void add_part(const uint16_t* keys, const uint16_t* values) {
    float scores[kScoreTiles][4] = {};
    multiply_keys(keys, scores);
    weigh(scores);
#pragma unroll
    for (int step = 0; step < Of::kPart / kStep; ++step) add_step(values, step, scores);
  }

  // The part that has the queries' own positions, from 16 own_step on.
  __device__ void add_last_part(const uint16_t* keys, const uint16_t* values, int own_step) {
    float scores[kScoreTiles][4] = {};
    multiply_keys(keys, scores);
#pragma unroll
    for (int i = 0; i < kScoreTiles * 4; ++i) {
      const int position = i / 4 * 8 + within() * 2 + i % 2, query = own_step * kStep + group() + i / 2 % 2 * 8;
      if (position > query) scores[i / 4][i % 4] = -INFINITY;
    }
    weigh(scores);
#pragma unroll
    for (int step = 0; step < Of::kPart / kStep; ++step)
      if (step < own_step) add_step(values, step, scores);
    add_own(values, own_step, scores);
  }

  // `first`: the position of the block's first query.
  __device__ void store(const PrefillAttention& attention, int head, int first) const {
    const int head_dim = static_cast<int>(attention.cache.head_dim), thread = thread_again();
    const int64_t query = first + thread / kWarpSize * kWarpQueries + thread % kWarpSize / 4 - attention.start;
    float* const out = attention.out + head * attention.cache.head_dim + thread % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = 1 / warp_sum<4>(totals[half]);
      const int64_t token = query + half * 8;
      if (token < 0 || token >= attention.tokens) continue;
      float* const row = out + token * (attention.cache.heads * attention.cache.head_dim);
#pragma unroll
      for (int n = 0; n < kDims / 8; ++n)
        if (n * 8 < head_dim)
          *reinterpret_cast<float2*>(row + n * 8) = {sums[n][2 * half] * inverse, sums[n][2 * half + 1] * inverse};
    }
  }
};

template <Format kFormat, int kDims>
__global__ void __launch_bounds__(kThreads, kDims <= 64 ? 2 : 1) attend_tile(const PrefillAttention attention) {
  using Of = Tile<kDims>;
  pdl_wait();
  pdl_launch_dependents();
  const CacheLayer& cache = attention.cache;
  const int head = blockIdx.x, start = static_cast<int>(attention.start);
  const int end = start + static_cast<int>(attention.tokens);
  // The last queries first: they take longest.
  const int first = ((end - 1) / kQueries - static_cast<int>(blockIdx.y)) * kQueries;
  const int first_of_warp = first + static_cast<int>(threadIdx.x) / kWarpSize * kWarpQueries;
  const int head_dim = static_cast<int>(cache.head_dim);
  const auto* keys = static_cast<const uint16_t*>(cache.data) + head_offset(cache, attention.slot, head);
  const Copies<kDims> copies{keys, keys + value_offset(cache), head_dim, end};
  const int tiles = (min(first + kQueries, end) + Of::kPositions - 1) / Of::kPositions;
  copies.start(0);
  Queries<kFormat, kDims> queries;
  queries.load(attention, head, first_of_warp);
  // Without queries, a warp is before every tile.
  const int last = first_of_warp + kWarpQueries > start && first_of_warp < end ? first_of_warp : -1;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<0>();
    __syncthreads();  // the other buffer is read no more, too
    if (tile + 1 < tiles) copies.start(tile + 1);
#pragma unroll 1
    for (int part = 0; part < Of::kPositions; part += Of::kPart) {
      const int before = last - tile * Of::kPositions - part;  // positions of the part before the warp's queries
      const uint16_t* const keys = copies.keys(tile) + part * Of::kStride;
      if (before >= Of::kPart) {
        queries.add_part(keys, keys + Of::kElements);
      } else if (before >= 0) {
        queries.add_last_part(keys, keys + Of::kElements, before / kStep);
      }
    }
  }
  queries.store(attention, head, first);
}

template <Format kFormat, int kDims>
cudaError_t attend(const PrefillAttention& attention, const dim3& grid, cudaStream_t stream) {
  const Shape shape{grid, dim3(kThreads), kSharedBytes<kDims>};
  if (const cudaError_t error = allow_shared_bytes(attend_tile<kFormat, kDims>, shape.shared_bytes)) return error;
  return launch(stream, shape, attend_tile<kFormat, kDims>, attention);
}

template <Format kFormat>
cudaError_t attend_in(const PrefillAttention& attention, const dim3& grid, cudaStream_t stream) {
  if (attention.cache.head_dim <= 64) return attend<kFormat, 64>(attention, grid, stream);
  if (attention.cache.head_dim <= 128) return attend<kFormat, 128>(attention, grid, stream);
  return attend<kFormat, 256>(attention, grid, stream);
}

}  // namespace

cudaError_t prefill_attention(const PrefillAttention& attention, cudaStream_t stream) {
  const CacheLayer& cache = attention.cache;
  if (attention.tokens == 0 || cache.heads == 0 || cache.head_dim == 0) return cudaSuccess;
  const int64_t end = attention.start + attention.tokens;
  const int64_t tiles = (end - 1) / kQueries - attention.start / kQueries + 1;
  if (cache.head_dim % 8 != 0 || cache.head_dim > 256) return cudaErrorInvalidValue;
  if (end > INT_MAX - kQueries || end * cache.head_dim > INT_MAX) return cudaErrorInvalidValue;
  if (!fits_grid(cache.heads, tiles)) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(cache.data) % sizeof(uint4) != 0) return cudaErrorMisalignedAddress;
  const dim3 grid(static_cast<unsigned>(cache.heads), static_cast<unsigned>(tiles));
  switch (cache.format) {
    case Format::kFloat16: return attend_in<Format::kFloat16>(attention, grid, stream);
    case Format::kBFloat16: return attend_in<Format::kBFloat16>(attention, grid, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace adept::cuda
