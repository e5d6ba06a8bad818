// Finds the ends of top-k and top-p in a row: first their bins, then the exact ends. One block does it, after all
// others have stored the tokens of their tiles in bins.
//
// Both keep the most likely tokens up to a goal, top-k a number of tokens and top-p a share of the mass; of equal
// tokens, those with the smallest ids. If both are set, top-p's goal is a share of what top-k keeps.
#pragma once

#include "cuda/sample_lists.cuh"

namespace adept::cuda::sampling {

// top-p's goal: its share of the whole mass.
__device__ __forceinline__ Uint64 mass_goal(float top_p, Uint64 whole) {
  // The conversion of a negative number is not defined.
  const Uint64 goal =
      top_p > 0 ? static_cast<Uint64>(ceil(static_cast<double>(top_p) * static_cast<double>(whole))) : 0;
  return goal > 0 ? goal : 1;
}

// The bins in which the limits end. Tokens in bins before `first` (those of the largest logits) are kept; those in bins
// `first` to `last` and in count_bin are candidates.
struct Ends {
  int first;
  int last;
  Uint64 mass_before;  // of the bins before `first`
  int count_bin;       // where top-k ends, if it leaves anything out that has a mass
  unsigned count_before_it;
  Uint64 mass_before_it;
  Uint64 total;  // mass of all bins

  __device__ static Ends none() { return {kBins, -1, 0, -1, 0, 0, 0}; }
};

// Finds bins in the sums of a row. A lane holds two of the groups; every warp does the same.
class Histogram {
 public:
  // Of the bins of a group, by warps.
  struct Parts {
    Uint64 masses[kWarps][kBinsOfGroup];
    unsigned counts[kWarps][kBinsOfGroup];
  };

  // `parts` are shared memory, for two calls of find() in turn.
  __device__ Histogram(const Lists& lists, int tiles, Parts (&parts)[2]) : lists_(lists), tiles_(tiles), parts_(parts) {
    const int lane = threadIdx.x % kWarpSize;
    const ulonglong2 mass = __ldcg(reinterpret_cast<const ulonglong2*>(lists.group_masses()) + lane);
    const uint2 count = __ldcg(reinterpret_cast<const uint2*>(lists.group_counts()) + lane);
    masses_[1] = warp_prefix(Uint64{mass.x + mass.y});
    masses_[0] = masses_[1] - mass.y;
    counts_[1] = warp_prefix(count.x + count.y);
    counts_[0] = counts_[1] - count.y;
  }

  __device__ Ends ends(const Settings& settings) {
    Ends ends = Ends::none();
    ends.total = __shfl_sync(kWholeWarp, masses_[1], kWarpSize - 1);
    const unsigned count = __shfl_sync(kWholeWarp, counts_[1], kWarpSize - 1);
    Uint64 min_kept = ends.total, max_kept = ends.total;  // of what top-k keeps
    if (settings.top_k > 0 && static_cast<Uint64>(settings.top_k) < count) {
      const Found end = find(counts_, static_cast<unsigned>(settings.top_k));
      ends.first = ends.last = ends.count_bin = end.bin;
      ends.count_before_it = end.count_before;
      ends.mass_before = ends.mass_before_it = min_kept = end.mass_before;
      max_kept = end.mass_after;
    }
    if (settings.top_p < 1) {
      const Found begin = find(masses_, mass_goal(settings.top_p, min_kept));
      ends.first = begin.bin;
      ends.mass_before = begin.mass_before;
      const Uint64 goal = mass_goal(settings.top_p, max_kept);
      ends.last = goal <= begin.mass_after ? begin.bin : find(masses_, goal).bin;
    }
    return ends;
  }

 private:
  // A bin, and the sums up to it.
  struct Found {
    int bin;
    unsigned count_before;
    Uint64 mass_before;
    Uint64 mass_after;
  };

  __device__ __forceinline__ static Uint64 of(Uint64, unsigned, Uint64 mass) { return mass; }
  __device__ __forceinline__ static unsigned of(unsigned, unsigned count, Uint64) { return count; }

  // The bin at which the sum reaches the goal: a group is found in registers, then its bin in the sums of all tiles.
  template <class Weight>
  __device__ Found find(const Weight (&groups)[2], Weight goal) {
    const unsigned first_reaches = __ballot_sync(kWholeWarp, groups[0] >= goal);
    const int in_lane = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, groups[1] >= goal))) - 1;
    const bool is_first = first_reaches >> in_lane & 1;
    const int group = 2 * in_lane + !is_first, before_it = is_first ? in_lane - 1 : in_lane;
    const unsigned count_before_it = __shfl_sync(kWholeWarp, is_first ? counts_[1] : counts_[0], max(before_it, 0));
    const Uint64 mass_before_it = __shfl_sync(kWholeWarp, is_first ? masses_[1] : masses_[0], max(before_it, 0));

    const int bin = threadIdx.x % kBinsOfGroup, warp = threadIdx.x / kWarpSize;
    const Uint64* const prefixes = lists_.prefixes(0) + group * kBinsOfGroup + bin;
    Uint64 mass = 0;
    unsigned count = 0;
#pragma unroll 8
    for (int tile = threadIdx.x / kBinsOfGroup; tile < tiles_; tile += kThreads / kBinsOfGroup) {
      const Uint64 sums = __ldcg(prefixes + int64_t{tile} * kBins);
      mass += mass_in(sums);
      count += count_in(sums);
    }
    mass += __shfl_xor_sync(kWholeWarp, mass, kBinsOfGroup);
    count += __shfl_xor_sync(kWholeWarp, count, kBinsOfGroup);
    Parts& parts = parts_[turn_];
    turn_ ^= 1;  // who is slow still reads the other one
    if (threadIdx.x % kWarpSize < kBinsOfGroup) {
      parts.masses[warp][bin] = mass;
      parts.counts[warp][bin] = count;
    }
    __syncthreads();
    mass = count = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      mass += parts.masses[i][bin];
      count += parts.counts[i][bin];
    }
    const int found = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, of(goal, count, mass) >= goal))) - 1;
    const unsigned count_before = __shfl_sync(kWholeWarp, count, max(found - 1, 0));
    const Uint64 mass_before = __shfl_sync(kWholeWarp, mass, max(found - 1, 0));
    const bool is_at_start = found == 0;
    return {group * kBinsOfGroup + found, is_at_start ? (group > 0 ? count_before_it : 0) : count_before,
            is_at_start ? (group > 0 ? mass_before_it : 0) : mass_before, __shfl_sync(kWholeWarp, mass, found)};
  }

  const Lists& lists_;
  const int tiles_;
  Parts (&parts_)[2];
  int turn_ = 0;
  Uint64 masses_[2];  // up to the end of each group
  unsigned counts_[2];
};

struct Candidate {
  uint32_t key;
  uint32_t id;
};

// The candidates of a row, in any order; results do not depend on it.
class Candidates {
 public:
  static constexpr int kHeld = 2048;  // at most this many are held in shared memory

  // Of a tile: where its candidates are in its sorted tokens. Those from `apart` on are the bin where top-k ends, if
  // that is behind the others.
  struct Run {
    uint16_t begin;
    uint16_t count;
    uint16_t apart_begin;
    uint16_t apart_count;
  };

  struct Shared {
    Candidate held[kHeld];
    Run runs[kThreads];
    unsigned before[kThreads];  // candidates in earlier tiles
  };

  // Each thread looks at one tile; `kept` becomes the mass that it certainly keeps.
  __device__ Candidates(const Logits& logits, const Lists& lists, int tiles, const Ends& ends, Shared& shared,
                        Uint64* kept)
      : logits_(logits), lists_(lists), tiles_(tiles), shared_(shared) {
    const int tile = threadIdx.x;
    Run run = {};
    if (tile < tiles && ends.last >= 0) {
      const Uint64* const prefixes = lists.prefixes(tile);
      const auto up_to = [&](int bin) { return bin >= 0 ? __ldcg(prefixes + bin) : 0; };
      const bool is_apart = ends.count_bin > ends.last;
      const Uint64 before = up_to(ends.first - 1), last = up_to(ends.last);
      const Uint64 before_apart = up_to(is_apart ? ends.count_bin - 1 : -1);
      const Uint64 apart = up_to(is_apart ? ends.count_bin : -1);
      // What min-p leaves is either all of the earlier bins, or nothing beyond them.
      *kept = min(mass_in(before), *kept);
      run = {static_cast<uint16_t>(count_in(before)), static_cast<uint16_t>(count_in(last) - count_in(before)),
             static_cast<uint16_t>(count_in(before_apart)),
             static_cast<uint16_t>(count_in(apart) - count_in(before_apart))};
    }
    const Prefix prefix = block_prefix(run.count + run.apart_count);
    count_ = static_cast<int>(prefix.total);
    shared.runs[tile] = run;
    shared.before[tile] = static_cast<unsigned>(prefix.before);
    __syncthreads();
    if (count_ > kHeld) return;
#pragma unroll 1
    for (int first = threadIdx.x; first < count_; first += kAtOnce * kThreads)
      hold(first, count_, [&](int place, int* at) {
        int in_tile = 0;  // the last one that begins there or before
#pragma unroll
        for (int step = kThreads / 2; step > 0; step /= 2)
          if (in_tile + step < tiles_ && static_cast<int>(shared_.before[in_tile + step]) <= place) in_tile += step;
        *at = place - static_cast<int>(shared_.before[in_tile]);
        return in_tile;
      });
  }

  // Calls visit(candidate) for this thread's, and after at most kHeld of the block's, pause().
  template <class Visit, class Pause>
  __device__ void each(Visit visit, Pause pause) const {
    if (count_ <= kHeld) {
      for (int i = threadIdx.x; i < count_; i += kThreads) visit(shared_.held[i]);
      pause();
      return;
    }
#pragma unroll 1
    for (int tile = 0; tile < tiles_; ++tile) {
      const int count = shared_.runs[tile].count + shared_.runs[tile].apart_count;
#pragma unroll 1
      for (int first = threadIdx.x; first < count; first += kAtOnce * kThreads)
        hold(first, count, [&](int place, int* at) {
          *at = place;
          return tile;
        });
      for (int i = threadIdx.x; i < count; i += kThreads) visit(shared_.held[i]);
      pause();
    }
  }

  template <class Visit>
  __device__ void each(Visit visit) const {
    each(visit, [] {});
  }

 private:
  static constexpr int kAtOnce = 4;

  // Puts candidates into shared memory: number `first` and each kThreads behind it, below `count`. find(number, &at)
  // gives a candidate's tile and its place among those of the tile. There is no barrier: a thread visits only what it
  // has put there itself. What other blocks of this kernel have written may be stale in L1.
  template <class Find>
  __device__ __forceinline__ void hold(int first, int count, Find find) const {
    int ids[kAtOnce];
    float z[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      ids[i] = static_cast<int>(logits_.sample.vocab);
      if (first + i * kThreads >= count) continue;
      int at;
      const int tile = find(first + i * kThreads, &at);
      const Run run = shared_.runs[tile];
      at += at < run.count ? run.begin : run.apart_begin - run.count;
      ids[i] = tile * kTile + __ldcg(lists_.sorted(tile) + at);
    }
    logits_.load_scaled(ids, z);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i * kThreads < count)
        shared_.held[first + i * kThreads] = {key_of(z[i]), static_cast<uint32_t>(ids[i])};
  }

  const Logits& logits_;
  const Lists& lists_;
  const int tiles_;
  Shared& shared_;
  int count_;
};

// The cut: all logits of larger keys are kept, and `ties` of those of this key.
struct End {
  uint32_t key = 0;
  Uint64 ties = ~Uint64{0};  // those with the smallest ids

  __device__ bool keeps(uint32_t other, Uint64 ties_before) const {
    return other > key || (other == key && ties_before < ties);
  }
};

// The end for one goal: the largest key such that the weights of all keys from it on reach the goal. `weigh(candidate)`
// is 0 for candidates to ignore; `before` is the weight of everything larger than the others. Bins of keys narrow the
// range, again and again, to that of the keys that are there.
template <class Weigh>
__device__ End find_end(const Candidates& candidates, Bins& bins, Uint64 before, Uint64 goal, Weigh weigh) {
  __shared__ int end_bin;
  __shared__ Uint64 before_end_bin;
  Range range{0, 0xffffffffu};
  while (true) {
    Range mine{0xffffffffu, 0};
    candidates.each([&](const Candidate& candidate) {
      const uint32_t key = candidate.key;
      if (key < range.lowest || key > range.highest || weigh(candidate) == 0) return;
      mine = {min(mine.lowest, key), max(mine.highest, key)};
    });
    range = block_range(mine);
    if (range.lowest >= range.highest) break;
    const int shift = max(0, 32 - __clz(static_cast<int>(range.highest - range.lowest)) - kBinsBits);
    const int first = threadIdx.x * kBinsEach;
    Uint64 sums[kBinsEach] = {}, sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) bins.low[first + i] = bins.high[first + i] = 0;
    __syncthreads();
    candidates.each(
        [&](const Candidate& candidate) {
          if (candidate.key < range.lowest || candidate.key > range.highest) return;
          const Uint64 weight = weigh(candidate);
          const int bin = static_cast<int>((range.highest - candidate.key) >> shift);
          if (weight > 0) Halves::add(&bins.low[bin], &bins.high[bin], weight);
        },
        [&] {
          __syncthreads();
#pragma unroll
          for (int i = 0; i < kBinsEach; ++i) {
            sums[i] += Halves::sum(bins.low[first + i], bins.high[first + i]);
            bins.low[first + i] = bins.high[first + i] = 0;
          }
          __syncthreads();
        });
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) sum += sums[i];
    Uint64 reached = before + block_prefix(sum).before;
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      if (reached < goal && goal <= reached + sums[i]) {
        end_bin = first + i;
        before_end_bin = reached;
      }
      reached += sums[i];
    }
    __syncthreads();
    before = before_end_bin;
    range.highest -= static_cast<uint32_t>(end_bin) << shift;
    range.lowest = max(range.lowest, range.highest - min(range.highest, (1u << shift) - 1));
  }
  return {range.highest, goal - before};  // ties in units of the weight
}

// The end of the row after all of its limits.
__device__ inline End find_end(const Settings& settings, const Row& row, const Ends& ends, const Candidates& candidates,
                               Bins& bins) {
  const auto bin_of = [&](const Candidate& candidate) { return row.bin(value_of(candidate.key)); };
  const auto mass_of = [&](const Candidate& candidate) { return row.mass(value_of(candidate.key)); };
  End end;
  Uint64 kept = ends.total;
  if (ends.count_bin >= 0) {
    const auto is_here = [&](const Candidate& candidate) { return bin_of(candidate) == ends.count_bin; };
    end = find_end(candidates, bins, ends.count_before_it, settings.top_k,
                   [&](const Candidate& candidate) { return Uint64{is_here(candidate)}; });
    Uint64 above = 0;
    candidates.each([&](const Candidate& candidate) {
      if (is_here(candidate) && candidate.key > end.key) above += mass_of(candidate);
    });
    kept = ends.mass_before_it + block_sum(above) + end.ties * row.mass(value_of(end.key));
  }
  if (settings.top_p < 1) {
    end =
        find_end(candidates, bins, ends.mass_before, mass_goal(settings.top_p, kept), [&](const Candidate& candidate) {
          const int bin = bin_of(candidate);
          return bin >= ends.first && bin <= ends.last ? mass_of(candidate) : 0;
        });
    const Uint64 each = row.mass(value_of(end.key));
    end.ties = (end.ties + each - 1) / each;
  }
  return end;
}

}  // namespace adept::cuda::sampling
