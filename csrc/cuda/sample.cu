// sample: the next id of each row of logits, greedy or drawn, without a sort.
//
// Layout: a block takes a tile of 2048 logits of one row. There are three kernels, always on the same grid; blocks that
// a row does not need return at once:
//   find_extremes   every row: the largest logit and its id, the smallest, and whether there is a NaN or +inf
//   fill_bins       greedy rows end here. With top-k or top-p: counts and masses of tokens in 2048 bins, largest first
//   draw            finds the bins in which top-k and top-p end, the mass that each tile certainly keeps, and the few
//                   candidates in those bins. The last block of a row finds the exact end among the candidates, then
//                   the tile in which the draw falls, and then the id.
// Sums are of integers, so results do not depend on the order of blocks or threads. If most tokens of a row are nearly
// equal and far from the smallest, a bin holds thousands of them; that is slow, and exact.
//
// Lower bound: a row of 262144 logits is 1 MB, still in L2 from lm_head. Limit: the latency of launches and loads, not
// bytes: 128 blocks of 256 threads with 8 loads of each thread in flight. Predicted, not measured, on an H100: greedy
// 6 us, drawn without limits 10 us, with top-k or top-p 15 us.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/sample_cut.cuh"
#include "cuda/sample_row.cuh"
#include "cuda/sample_sums.cuh"

namespace adept::cuda {
namespace sampling {
namespace {

// The results of a kernel for the next ones, by row.
struct Workspace {
  Candidate* candidates;       // [tokens, tiles * kTile]
  Extremes* extremes;          // [tokens, tiles]
  Uint64* kept;                // [tokens, tiles], mass
  Uint64* bin_masses;          // [tokens, kBins]
  unsigned* bin_counts;        // [tokens, kBins]
  unsigned* candidate_counts;  // [tokens]
  unsigned* arrivals;          // [tokens], blocks that are done

  Workspace(const Sample& sample, int64_t tiles, void* memory) {
    static_assert(sizeof(Candidate) == 8 && sizeof(Extremes) == 16 && sizeof(Uint64) == 8);  // as workspace.h has them
    auto* at = static_cast<char*>(memory);
    const int64_t tokens = sample.tokens;
    take(tokens * tiles * kTile, &at, &candidates);
    take(tokens * tiles, &at, &extremes);
    take(tokens * tiles, &at, &kept);
    take(tokens * kBins, &at, &bin_masses);
    take(tokens * kBins, &at, &bin_counts);
    take(tokens, &at, &candidate_counts);
    take(tokens, &at, &arrivals);
  }

 private:
  // The sizes of the lists keep the next one aligned.
  template <class T>
  static void take(int64_t count, char** at, T** list) {
    *list = reinterpret_cast<T*>(*at);
    *at += count * static_cast<int64_t>(sizeof(T));
  }
};

// Called by one thread of a row.
__device__ void choose(const Sample& sample, const Settings& settings, int64_t token, int64_t id) {
  sample.ids[token] = id;
  if (id < 0) return;
  if (settings.penalty != 1) sample.seen[settings.slot * sample.vocab + id] = true;
  if (settings.counts()) ++sample.counts[settings.slot * sample.vocab + id];
}

__global__ void __launch_bounds__(kThreads) find_extremes(const Sample sample, const Workspace workspace) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const Settings settings(sample, token);
  if (!settings.exists) return;
  const Logits logits(sample, token, settings);
  const int64_t first = int64_t{blockIdx.x} * kTile + threadIdx.x;
  float z[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    z[i] = first + i * kThreads < sample.vocab ? logits.at[first + i * kThreads] : -INFINITY;
  Extremes mine = Extremes::none();
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine.look_at(z[i]);
  if (logits.are_adjusted()) {
    // Read again, one at a time: more would take registers, and other rows would wait for fewer blocks at once.
#pragma unroll 1
    for (int64_t id = first; id < min(first + kTile, sample.vocab); id += kThreads)
      mine.add(id, logits.adjusted(id, logits.at[id]));
  } else {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (first + i * kThreads < sample.vocab) mine.add(first + i * kThreads, z[i]);
  }
  const Extremes all = mine.of_block();
  if (threadIdx.x == 0) workspace.extremes[token * gridDim.x + blockIdx.x] = all;
  if (threadIdx.x == 0 && blockIdx.x == 0) workspace.candidate_counts[token] = workspace.arrivals[token] = 0;
  if (!settings.limits()) return;
  for (int bin = blockIdx.x * kThreads + threadIdx.x; bin < kBins; bin += gridDim.x * kThreads) {
    workspace.bin_masses[token * kBins + bin] = 0;
    workspace.bin_counts[token * kBins + bin] = 0;
  }
}

// The extremes of all tiles of a token.
__device__ Extremes extremes_of(const Workspace& workspace, int64_t token) {
  const bool has_one = threadIdx.x < gridDim.x;
  return (has_one ? workspace.extremes[token * gridDim.x + threadIdx.x] : Extremes::none()).of_block();
}

// The bins of a tile. Masses are added as two halves of 20 bits, which 2048 masses do not overflow.
struct Tile {
  static constexpr int kHalf = 20;
  unsigned counts[kBins];
  unsigned low[kBins];
  unsigned high[kBins];

  __device__ void clear() {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) counts[bin] = low[bin] = high[bin] = 0;
  }

  __device__ void add(int bin, Uint64 mass) {
    atomicAdd(&counts[bin], 1u);
    atomicAdd(&low[bin], static_cast<unsigned>(mass & ((1u << kHalf) - 1)));
    atomicAdd(&high[bin], static_cast<unsigned>(mass >> kHalf));
  }

  __device__ void add_to(unsigned* all_counts, Uint64* all_masses) const {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
      if (counts[bin] == 0) continue;
      atomicAdd(&all_counts[bin], counts[bin]);
      atomicAdd(&all_masses[bin], (Uint64{high[bin]} << kHalf) + low[bin]);
    }
  }
};

__global__ void __launch_bounds__(kThreads) fill_bins(const Sample sample, const Workspace workspace) {
  __shared__ Tile tile;
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const Settings settings(sample, token);
  if (!settings.exists) {
    if (blockIdx.x == 0 && threadIdx.x == 0) sample.ids[token] = kInvalid;
    return;
  }
  const Row row(extremes_of(workspace, token), settings);
  if (!row.is_drawn) {
    const int64_t id = row.is_valid ? row.likeliest : kInvalid;
    if (blockIdx.x == 0 && threadIdx.x == 0) choose(sample, settings, token, id);
    return;
  }
  if (!settings.limits()) return;
  tile.clear();
  __syncthreads();
  const Logits logits(sample, token, settings);
  const int64_t first = int64_t{blockIdx.x} * kTile + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t id = first + i * kThreads;
    const float z = id < sample.vocab ? logits.scaled(id) : -INFINITY;
    const Uint64 mass = row.mass(z);
    if (mass > 0) tile.add(row.bin(z), mass);
  }
  __syncthreads();
  tile.add_to(workspace.bin_counts + token * kBins, workspace.bin_masses + token * kBins);
}

// Sums the mass that a tile certainly keeps, and stores its candidates.
__device__ Uint64 sift(const Sample& sample, const Settings& settings, const Row& row, const Bins& bins, int64_t token,
                       const Workspace& workspace) {
  __shared__ unsigned from;
  const Logits logits(sample, token, settings);
  const int64_t first = int64_t{blockIdx.x} * kTile + threadIdx.x;
  uint32_t keys[kEach];
  unsigned candidates = 0;  // a bit for each of this thread's logits
  Uint64 kept = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t id = first + i * kThreads;
    const float z = id < sample.vocab ? logits.scaled(id) : -INFINITY;
    const Uint64 mass = row.mass(z);
    keys[i] = key_of(z);
    if (mass == 0) continue;
    const int bin = row.bin(z);
    if (bin < bins.first && row.share(z) >= settings.min_p) kept += mass;
    if (bins.is_candidate(bin)) candidates |= 1u << i;
  }
  const Prefix prefix = block_prefix(__popc(candidates));
  if (threadIdx.x == 0 && prefix.total > 0)
    from = atomicAdd(&workspace.candidate_counts[token], static_cast<unsigned>(prefix.total));
  __syncthreads();
  Candidate* to = workspace.candidates + token * gridDim.x * kTile;
  unsigned at = prefix.total > 0 ? from + static_cast<unsigned>(prefix.before) : 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (candidates >> i & 1) to[at++] = {keys[i], static_cast<uint32_t>(first + i * kThreads)};
  return block_sum(kept);
}

// Whether all other blocks of the row are done, so that their results are visible. The fence before the atomic
// operation publishes what this block has written; the fence after it acquires what the others have.
__device__ bool is_last(unsigned* arrivals) {
  __shared__ unsigned before;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    before = atomicAdd(arrivals, 1u);
    __threadfence();
  }
  __syncthreads();
  return before == gridDim.x - 1;
}

// The position of a draw: the tile, the mass in it before the draw, and the tokens equal to the end in earlier tiles.
struct Drawn {
  int tile;
  Uint64 past;
  Uint64 ties_before;
};

// The mass and the ties that kept candidates add to each tile.
struct Gains {
  unsigned low[kThreads];
  unsigned high[kThreads];
  unsigned ties[kThreads];
};

__device__ void add_candidates(const Settings& settings, const Row& row, const End& end, const Candidates& candidates,
                               Gains& gains) {
  gains.low[threadIdx.x] = gains.high[threadIdx.x] = gains.ties[threadIdx.x] = 0;
  __syncthreads();
  candidates.each([&](const Candidate& candidate) {
    const int tile = static_cast<int>(candidate.id / kTile);
    const float z = value_of(candidate.key);
    if (candidate.key == end.key) atomicAdd(&gains.ties[tile], 1u);
    if (candidate.key <= end.key || !(row.share(z) >= settings.min_p)) return;
    const Uint64 mass = row.mass(z);
    atomicAdd(&gains.low[tile], static_cast<unsigned>(mass & ((1u << Tile::kHalf) - 1)));
    atomicAdd(&gains.high[tile], static_cast<unsigned>(mass >> Tile::kHalf));
  });
  __syncthreads();
}

// The tile in which a random share of the kept mass ends; `drawn` is shared memory.
__device__ void find_tile(const Settings& settings, const Row& row, const End& end, const Uint64* kept,
                          const Gains& gains, Uint64 seed, Uint64 position, Drawn* drawn) {
  const int tile = threadIdx.x;
  const Uint64 ties = gains.ties[tile], ties_before = block_prefix(ties).before;
  const Uint64 left = end.ties > ties_before ? end.ties - ties_before : 0;
  const float z = value_of(end.key);
  const Uint64 of_a_tie = ties > 0 && row.share(z) >= settings.min_p ? row.mass(z) : 0;
  Uint64 mass = tile < gridDim.x ? __ldcg(kept + tile) : 0;
  mass += (Uint64{gains.high[tile]} << Tile::kHalf) + gains.low[tile] + (ties < left ? ties : left) * of_a_tie;
  const Prefix prefix = block_prefix(mass);
  const Uint64 at = random_share(seed, position, prefix.total);
  if (prefix.before <= at && at < prefix.before + mass) *drawn = {tile, at - prefix.before, ties_before};
  __syncthreads();
}

// The id in that tile: each thread takes neighbouring ids.
__device__ void find_id(const Sample& sample, const Settings& settings, const Row& row, const End& end,
                        const Drawn& drawn, int64_t token) {
  const Logits logits(sample, token, settings);
  const int64_t first = int64_t{drawn.tile} * kTile + threadIdx.x * kEach;
  float z[kEach];
  unsigned ties = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    z[i] = first + i < sample.vocab ? logits.scaled(first + i) : -INFINITY;
    ties += key_of(z[i]) == end.key;
  }
  Uint64 ties_before = drawn.ties_before + block_prefix(ties).before;
  Uint64 masses[kEach];
  Uint64 mass = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t key = key_of(z[i]);
    const bool is_kept = end.keeps(key, ties_before) && row.share(z[i]) >= settings.min_p;
    ties_before += key == end.key;
    mass += masses[i] = is_kept ? row.mass(z[i]) : 0;
  }
  Uint64 before = block_prefix(mass).before;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const Uint64 after = before + masses[i];
    if (before <= drawn.past && drawn.past < after) choose(sample, settings, token, first + i);
    before = after;
  }
}

__global__ void __launch_bounds__(kThreads) draw(const Sample sample, const Workspace workspace) {
  __shared__ Found found;
  __shared__ Candidate held[Candidates::kHeld];
  __shared__ Gains gains;
  __shared__ Drawn drawn;
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const Settings settings(sample, token);
  if (!settings.exists) return;
  const Row row(extremes_of(workspace, token), settings);
  if (!row.is_drawn) return;
  Bins bins;
  if (settings.limits())
    bins = Histogram(workspace.bin_counts + token * kBins, workspace.bin_masses + token * kBins).bins(settings, &found);
  const Uint64 kept = sift(sample, settings, row, bins, token, workspace);
  if (threadIdx.x == 0) workspace.kept[token * gridDim.x + blockIdx.x] = kept;
  if (!is_last(&workspace.arrivals[token])) return;

  const Candidates candidates(workspace.candidates + token * gridDim.x * kTile,
                              __ldcg(&workspace.candidate_counts[token]), held);
  const End end = bins.last < 0 ? End{} : find_end(settings, row, bins, candidates);
  add_candidates(settings, row, end, candidates, gains);
  if (threadIdx.x == 0) drawn.tile = -1;
  find_tile(settings, row, end, workspace.kept + token * gridDim.x, gains, sample.seed[settings.slot],
            sample.positions[token], &drawn);
  if (drawn.tile >= 0) return find_id(sample, settings, row, end, drawn, token);
  // Settings that are out of range have left nothing.
  if (threadIdx.x == 0) choose(sample, settings, token, row.likeliest);
}

}  // namespace
}  // namespace sampling

int64_t sample_workspace_bytes(const Sample& sample) { return sample_lists_bytes(sample.tokens, sample.vocab); }

cudaError_t sample(const Sample& sample, void* memory, cudaStream_t stream) {
  using namespace sampling;
  if (sample.tokens == 0) return cudaSuccess;
  if (sample.vocab < 1 || sample.vocab > kMaxVocab) return cudaErrorInvalidValue;
  const int64_t tiles = blocks_of(sample.vocab, kTile);
  if (!fits_grid(tiles, sample.tokens)) return cudaErrorInvalidValue;
  const Workspace workspace(sample, tiles, memory);
  const Shape shape{dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(sample.tokens)), dim3(kThreads)};
  for (const auto kernel : {find_extremes, fill_bins, draw})
    if (const cudaError_t error = launch(stream, shape, kernel, sample, workspace)) return error;
  return cudaSuccess;
}

}  // namespace adept::cuda
