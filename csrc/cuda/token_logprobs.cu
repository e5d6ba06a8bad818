// token_logprobs: for each row of logits the log-probability of a given id, and the most likely ids with theirs.
//
// Layout: in find_largest a block takes a tile of 2048 logits of one row. Each warp takes the largest of its 256 again
// and again, the first warp merges what they have found, and all sum exp(logit - the tile's largest). In merge_tiles a
// block takes a row: the first warp merges the tiles' lists; a thread adds what a tile sums up to. Every sum has one
// order, so a row gets the same bits alone and in a batch. Of equal logits the smaller id comes first.
//
// Lower bound: a row of 262144 logits is 1 MB, still in L2 from lm_head, and is read once. Limit: a chain of dependent
// steps. One row and 20 ids, in us on an H100, predicted from the instructions, not measured: two launches 4, loads
// 0.9, 20 maxima of a warp 1, as many of warps 1, of tiles 1.5, the rest 0.5: 9. Without ids besides the given one: 6.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/sample_row.cuh"
#include "cuda/sample_sums.cuh"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace logprobs {
namespace {

using sampling::kEach, sampling::kThreads, sampling::kTile, sampling::kWarps, sampling::Uint64;

constexpr int kMost = kMaxTopLogprobs;
constexpr int kTilesOfLane = sampling::kMaxVocab / kTile / kWarpSize;

// A logit's key, and below it the complement of its id: larger for larger logits, and for smaller ids among equals.
// 0 is none.
__device__ __forceinline__ Uint64 ranked(float z, int id) {
  return Uint64{sampling::key_of(z)} << 32 | static_cast<uint32_t>(~id);
}

// What a tile leaves for its row.
struct Tile {
  float largest;
  float sum;  // of exp(logit - largest)
};

// Of one row: what each tile leaves, then its list of the `count` largest.
class Lists {
 public:
  __device__ Lists(const TokenLogprobs& operands, void* memory, int64_t token, int tiles)
      : tiles_(reinterpret_cast<Tile*>(static_cast<char*>(memory)) + token * tiles),
        largest_(reinterpret_cast<Uint64*>(static_cast<char*>(memory)) +
                 (operands.tokens + token * operands.count) * tiles) {
    static_assert(sizeof(Tile) == sizeof(Uint64));
  }

  __device__ Tile* tiles() const { return tiles_; }
  __device__ Uint64* largest() const { return largest_; }  // [tiles, count]

 private:
  Tile* tiles_;
  Uint64* largest_;
};

// Takes the `count` largest of a warp's `heads`, one after the other, and calls take(number, value) in every lane. In
// the lane that had a value, next(i) gives the one that follows it in list i. Values other than 0 are unlike each
// other.
template <int kHeads, class Next, class Take>
__device__ __forceinline__ void take_largest(Uint64 (&heads)[kHeads], int count, Next next, Take take) {
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    Uint64 mine = heads[0];
#pragma unroll
    for (int i = 1; i < kHeads; ++i) mine = max(mine, heads[i]);
    const auto key = static_cast<uint32_t>(mine >> 32);
    const uint32_t best_key = __reduce_max_sync(kWholeWarp, key);
    const uint32_t id = __reduce_max_sync(kWholeWarp, key == best_key ? static_cast<uint32_t>(mine) : 0);
    const Uint64 best = Uint64{best_key} << 32 | id;
    take(n, best);
    if (mine != best || best == 0) continue;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
      if (heads[i] == best) heads[i] = next(i);
  }
}

// The sum over the block, always in the same order.
template <class T>
__device__ T ordered_sum(T value) {
  __shared__ T of_warps[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < kWarps; ++warp) value += of_warps[warp];
  return value;
}

__global__ void __launch_bounds__(kThreads, 4) find_largest(const TokenLogprobs operands, void* memory) {
  __shared__ Uint64 of_warps[kWarps][kMost];
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const int tile = blockIdx.x, lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int count = static_cast<int>(operands.count);
  int ids[kEach];
  float z[kEach];
  Uint64 heads[kEach];
  sampling::take_ids(tile, ids);
  sampling::load_logits(operands.logits + token * operands.vocab, operands.vocab, ids, z);
#pragma unroll
  for (int i = 0; i < kEach; ++i) heads[i] = ids[i] < operands.vocab ? ranked(z[i], ids[i]) : 0;
  const auto none = [](int) { return Uint64{0}; };
  take_largest(heads, max(count, 1), none, [&](int n, Uint64 best) {
    if (lane == 0) of_warps[warp][n] = best;
  });
  __syncthreads();

  Uint64 best = of_warps[0][0];
  for (int i = 1; i < kWarps; ++i) best = max(best, of_warps[i][0]);
  const float largest = sampling::value_of(static_cast<uint32_t>(best >> 32));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += z[i] == -INFINITY ? 0 : expf(z[i] - largest);
  sum = ordered_sum(sum);
  const Lists lists(operands, memory, token, gridDim.x);
  if (threadIdx.x == 0) lists.tiles()[tile] = {largest, sum};
  if (warp > 0) return;
  int at = 0;
  Uint64 head[1] = {lane < kWarps && count > 0 ? of_warps[lane % kWarps][0] : 0};
  take_largest(
      head, count, [&](int) { return ++at < count ? of_warps[lane][at] : 0; },
      [&](int n, Uint64 best) {
        if (lane == 0) lists.largest()[tile * count + n] = best;
      });
}

__global__ void __launch_bounds__(kThreads) merge_tiles(const TokenLogprobs operands, void* memory, int tiles) {
  __shared__ Uint64 lists_of_tiles[kTilesOfLane * kWarpSize * kMost];
  __shared__ Uint64 found[kMost];
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x % kWarpSize, count = static_cast<int>(operands.count);
  const Lists lists(operands, memory, token, tiles);
  const int64_t id = operands.chosen[token];
  const bool exists = id >= 0 && id < operands.vocab;
  const float given = exists ? operands.logits[token * operands.vocab + id] : 0;
  const Tile tile = threadIdx.x < tiles ? lists.tiles()[threadIdx.x] : Tile{-INFINITY, 0};
  for (int i = threadIdx.x; i < tiles * count; i += kThreads) lists_of_tiles[i] = lists.largest()[i];
  const uint32_t key = sampling::key_of(tile.largest);
  const float largest = sampling::value_of(sampling::block_range({key, key}).highest);  // and copies are done
  const double sum = ordered_sum(tile.sum == 0 ? 0 : static_cast<double>(tile.sum) * expf(tile.largest - largest));
  if (threadIdx.x >= kWarpSize) return;

  int at[kTilesOfLane] = {};
  Uint64 heads[kTilesOfLane];
#pragma unroll
  for (int i = 0; i < kTilesOfLane; ++i) {
    const int list = i * kWarpSize + lane;
    heads[i] = list < tiles && count > 0 ? lists_of_tiles[list * count] : 0;
  }
  take_largest(
      heads, count, [&](int i) { return ++at[i] < count ? lists_of_tiles[(i * kWarpSize + lane) * count + at[i]] : 0; },
      [&](int n, Uint64 best) {
        if (lane == 0) found[n] = best;
      });
  __syncwarp();
  const double log_of_sum = log(sum);
  const auto logprob = [&](float z) {
    return static_cast<float>(static_cast<double>(z) - static_cast<double>(largest) - log_of_sum);
  };
  float* const out = operands.out + token * 2 * (1 + count);  // [2, 1 + count]
  if (lane == 0) {
    out[0] = exists ? static_cast<float>(id) : -1;
    out[1 + count] = exists ? logprob(given) : NAN;
  }
  if (lane >= count) return;
  out[1 + lane] = static_cast<float>(static_cast<uint32_t>(~found[lane]));
  out[1 + count + 1 + lane] = logprob(sampling::value_of(static_cast<uint32_t>(found[lane] >> 32)));
}

}  // namespace
}  // namespace logprobs

int64_t token_logprobs_workspace_bytes(const TokenLogprobs& operands) {
  return logprob_lists_bytes(operands.tokens, operands.vocab, operands.count);
}

cudaError_t token_logprobs(const TokenLogprobs& operands, void* memory, cudaStream_t stream) {
  using namespace logprobs;
  if (operands.tokens == 0) return cudaSuccess;
  if (operands.vocab < 1 || operands.vocab > sampling::kMaxVocab) return cudaErrorInvalidValue;
  if (operands.count < 0 || operands.count > kMost || operands.count > operands.vocab) return cudaErrorInvalidValue;
  const auto tiles = static_cast<unsigned>(blocks_of(operands.vocab, kTile));
  if (!fits_grid(tiles, operands.tokens)) return cudaErrorInvalidValue;
  const auto tokens = static_cast<unsigned>(operands.tokens);
  const cudaError_t error = launch(stream, {dim3(tiles, tokens), dim3(kThreads)}, find_largest, operands, memory);
  if (error != cudaSuccess) return error;
  return launch(stream, {dim3(tokens), dim3(kThreads)}, merge_tiles, operands, memory, static_cast<int>(tiles));
}

}  // namespace adept::cuda
