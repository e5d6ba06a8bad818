// sample: the next id of each row of logits, greedy or drawn, without a sort.
//
// Layout: a block takes a tile of 2048 logits of one row. There are two kernels, always on the same grid; blocks that a
// row does not need return at once:
//   find_extremes  every row: the largest logit and its id, the smallest, and whether there is a NaN or +inf
//   draw           Greedy rows end here. With top-k or top-p a block puts its tokens into 1024 bins, largest first, and
//                  stores the prefix sums of counts and masses, and the tokens in the order of the bins. The last block
//                  of a row finds the bins in which top-k and top-p end: sums of the tiles' prefix sums, so nothing is
//                  read anew; the exact ends among the candidates, the tokens of those bins; the tile in which the draw
//                  falls; and the id.
// Sums are of integers, so results do not depend on the order of blocks or threads. If more than 2048 tokens are in the
// bin of an end, as when most of a row are nearly equal and far from the smallest, that is slow, and exact.
//
// Lower bound: a row of 262144 logits is 1 MB, still in L2 from lm_head, and is read twice. Limit: a chain of dependent
// steps. With top-p, one row, in us on an H100, predicted from the instructions, not measured:
//   find_extremes  launch 2; slot, settings 0.6, the logits arrive meanwhile; extremes of a block 0.2
//   draw           launch 2, the bins are cleared meanwhile; slot, settings, logits 0.9; divisions, masses, bins 0.6;
//                  prefix sums, lists 0.4; two fences and a counter 1; in the last block: sums of groups of bins 0.5,
//                  of the bins of one 0.5; of each tile what it keeps 0.4; candidates' places, ids, logits 0.8; their
//                  range, bins of keys, the range in one of them 0.5; masses by tile 0.4; logits and masses of the
//                  tile, the id 0.9
// That is 12; what was predicted like this took up to one and a half times as long, except for launches: 12 to 16.
// Greedy 6 to 7. Several rows hide each other's chains: 3 blocks of `draw` share a multiprocessor.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/sample_cut.cuh"
#include "cuda/sample_lists.cuh"
#include "cuda/sample_row.cuh"
#include "cuda/sample_sums.cuh"

namespace adept::cuda {
namespace sampling {
namespace {

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
  int ids[kEach];
  float z[kEach];
  take_ids(blockIdx.x, ids);
  load_logits(sample.logits + token * sample.vocab, sample.vocab, ids, z);  // on their way while the settings are
  const Settings settings = Settings::of(sample, token);
  if (!settings.exists) return;
  const Logits logits{sample, settings, token};
  Extremes mine = Extremes::none();
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine.look_at(z[i]);
  logits.adjust(ids, z);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (ids[i] < sample.vocab) mine.add(ids[i], z[i]);
  const Extremes all = mine.of_block();
  const Lists lists(workspace, token, gridDim.x);
  if (threadIdx.x == 0) lists.extremes()[blockIdx.x] = all;
  if (blockIdx.x > 0) return;
  if (threadIdx.x == 0) *lists.arrivals() = 0;
  if (threadIdx.x < kGroups) lists.group_masses()[threadIdx.x] = lists.group_counts()[threadIdx.x] = 0;
}

__device__ Uint64 mass_that_passes(const Row& row, const float (&z)[kEach]) {
  Uint64 mass = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) mass += row.passes(z[i]) ? row.mass(z[i]) : 0;
  return block_sum(mass);
}

// Stores a tile's tokens in bins; returns the mass that min-p leaves. The bins are clear.
__device__ Uint64 fill_bins(const Row& row, const float (&z)[kEach], const Lists& lists, Bins& bins,
                            uint16_t (&sorted)[kTile]) {
  constexpr unsigned kNone = ~0u;
  unsigned places[kEach];  // in the upper half a bin, in the lower one how many are there before
  Uint64 masses[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) masses[i] = row.mass(z[i]);  // all chains of instructions side by side
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    places[i] = kNone;
    if (masses[i] == 0) continue;
    const int bin = row.bin(z[i]);
    places[i] = static_cast<unsigned>(bin) << 16 | bins.add(bin, masses[i]);
  }
  __syncthreads();
  const Uint64 sums = bins.store(lists, blockIdx.x);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (places[i] != kNone)
      sorted[bins.counts[places[i] >> 16] + (places[i] & 0xffffu)] = static_cast<uint16_t>(i * kThreads + threadIdx.x);
  __syncthreads();
  // 16 bytes of each thread.
  if (threadIdx.x * kEach < count_in(sums))
    reinterpret_cast<uint4*>(lists.sorted(blockIdx.x))[threadIdx.x] =
        reinterpret_cast<const uint4*>(sorted)[threadIdx.x];
  return row.least == -INFINITY ? mass_in(sums) : mass_that_passes(row, z);
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

__device__ void add_candidates(const Row& row, const End& end, const Candidates& candidates, Gains& gains) {
  gains.low[threadIdx.x] = gains.high[threadIdx.x] = gains.ties[threadIdx.x] = 0;
  __syncthreads();
  candidates.each([&](const Candidate& candidate) {
    const int tile = static_cast<int>(candidate.id / kTile);
    const float z = value_of(candidate.key);
    if (candidate.key == end.key) atomicAdd(&gains.ties[tile], 1u);
    if (candidate.key > end.key && row.passes(z)) Halves::add(&gains.low[tile], &gains.high[tile], row.mass(z));
  });
  __syncthreads();
}

// The tile in which a random share of the kept mass ends; `drawn` is shared memory.
__device__ void find_tile(const Row& row, const End& end, Uint64 kept, const Gains& gains, Uint64 random,
                          Drawn* drawn) {
  const int tile = threadIdx.x;
  const Uint64 ties = gains.ties[tile], ties_before = block_prefix(ties).before;
  const Uint64 left = end.ties > ties_before ? end.ties - ties_before : 0;
  const float z = value_of(end.key);
  const Uint64 of_a_tie = ties > 0 && row.passes(z) ? row.mass(z) : 0;
  const Uint64 mass = kept + Halves::sum(gains.low[tile], gains.high[tile]) + min(ties, left) * of_a_tie;
  const Prefix prefix = block_prefix(mass);
  const Uint64 at = __umul64hi(random, prefix.total);
  if (prefix.before <= at && at < prefix.before + mass) *drawn = {tile, at - prefix.before, ties_before};
  __syncthreads();
}

// The id in that tile: each thread takes neighbouring ids.
__device__ void find_id(const Logits& logits, const Row& row, const End& end, const Drawn& drawn) {
  int ids[kEach];
  float z[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) ids[i] = drawn.tile * kTile + threadIdx.x * kEach + i;
  logits.load_scaled(ids, z);
  unsigned ties = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) ties += key_of(z[i]) == end.key;
  Uint64 ties_before = drawn.ties_before + block_prefix(ties).before;
  Uint64 masses[kEach];
  Uint64 mass = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) masses[i] = row.mass(z[i]);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t key = key_of(z[i]);
    mass += masses[i] = end.keeps(key, ties_before) && row.passes(z[i]) ? masses[i] : 0;
    ties_before += key == end.key;
  }
  Uint64 before = block_prefix(mass).before;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const Uint64 after = before + masses[i];
    if (before <= drawn.past && drawn.past < after) choose(logits.sample, logits.settings, logits.token, ids[i]);
    before = after;
  }
}

struct Shared {
  Bins bins;
  union {
    __align__(16) uint16_t sorted[kTile];
    Candidates::Shared candidates;
  };
  Histogram::Parts parts[2];
  Settings settings;
  Row row;
  Ends ends;
  Uint64 random;
  Uint64 kept[kThreads];
  Gains gains;
  Drawn drawn;
};

// What the last block of a row does. What is needed again only later waits in shared memory.
__device__ void draw_one(const Sample& sample, int64_t token, const Lists& lists, Shared& shared) {
  const Settings& settings = shared.settings;
  const Row& row = shared.row;
  const int tiles = gridDim.x;
  const Logits logits{sample, settings, token};
  const Uint64 seed = sample.seed[settings.slot], position = sample.positions[token];
  shared.kept[threadIdx.x] = threadIdx.x < tiles ? __ldcg(lists.passing() + threadIdx.x) : 0;
  const Ends ends = settings.limits() ? Histogram(lists, tiles, shared.parts).ends(settings) : Ends::none();
  if (threadIdx.x == 0) {
    shared.ends = ends;
    shared.random = random_bits(seed, position);
    shared.drawn.tile = -1;
  }
  const Candidates candidates(logits, lists, tiles, ends, shared.candidates, &shared.kept[threadIdx.x]);
  const End end = shared.ends.last < 0 ? End{} : find_end(settings, row, shared.ends, candidates, shared.bins);
  add_candidates(row, end, candidates, shared.gains);
  find_tile(row, end, shared.kept[threadIdx.x], shared.gains, shared.random, &shared.drawn);
  if (shared.drawn.tile >= 0) return find_id(logits, row, end, shared.drawn);
  // Settings that are out of range have left nothing.
  if (threadIdx.x == 0) choose(sample, settings, token, row.likeliest);
}

__global__ void __launch_bounds__(kThreads, 3) draw(const Sample sample, const Workspace workspace) {
  __shared__ Shared shared;
  pdl_launch_dependents();
  shared.bins.clear();
  pdl_wait();
  const int64_t token = blockIdx.y;
  const Lists lists(workspace, token, gridDim.x);
  const bool has_extremes = threadIdx.x < gridDim.x;
  const Extremes of_tile = has_extremes ? lists.extremes()[threadIdx.x] : Extremes::none();
  const Settings settings = Settings::of(sample, token);
  if (!settings.exists) {
    if (blockIdx.x == 0 && threadIdx.x == 0) sample.ids[token] = kInvalid;
    return;
  }
  if (!settings.draws() && blockIdx.x > 0) return;
  int ids[kEach];
  float z[kEach];
  take_ids(blockIdx.x, ids);
  load_logits(sample.logits + token * sample.vocab, sample.vocab, ids, z);
  const Row row = Row::of(of_tile.of_block(), settings);
  if (!row.is_drawn) {
    const int64_t id = row.is_valid ? row.likeliest : kInvalid;
    if (blockIdx.x == 0 && threadIdx.x == 0) choose(sample, settings, token, id);
    return;
  }
  const Logits logits{sample, settings, token};
  logits.scale(ids, z);
  const Uint64 passing =
      settings.limits() ? fill_bins(row, z, lists, shared.bins, shared.sorted) : mass_that_passes(row, z);
  if (threadIdx.x == 0) lists.passing()[blockIdx.x] = passing;
  if (threadIdx.x == 0) {
    shared.settings = settings;
    shared.row = row;
  }
  if (is_last(lists.arrivals())) draw_one(sample, token, lists, shared);
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
  const Workspace workspace{static_cast<char*>(memory), sample_lists_bytes(1, sample.vocab)};
  const Shape shape{dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(sample.tokens)), dim3(kThreads)};
  for (const auto kernel : {find_extremes, draw})
    if (const cudaError_t error = launch(stream, shape, kernel, sample, workspace)) return error;
  return cudaSuccess;
}

}  // namespace adept::cuda
