// Finds the ends of top-k and top-p in a row: first their bins, then the exact ends.
//
// Both keep the most likely tokens up to a goal, top-k a number of tokens and top-p a share of the mass; of equal
// tokens, those with the smallest ids. If both are set, top-p's goal is a share of what top-k keeps.
#pragma once

#include "cuda/sample_row.cuh"

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
struct Bins {
  int first = kBins;
  int last = -1;
  Uint64 mass_before = 0;  // of the bins before `first`
  int count_bin = -1;      // where top-k ends, if it leaves anything out that has a mass
  Uint64 count_before_it = 0;
  Uint64 mass_before_it = 0;
  Uint64 total = 0;  // mass of all bins

  __device__ bool is_candidate(int bin) const { return (bin >= first && bin <= last) || bin == count_bin; }
};

// A bin, and the sums of the bins before it.
struct Found {
  int bin;
  Uint64 count_before;
  Uint64 mass_before;
  Uint64 mass;
};

// The bins of a row; a thread holds kEach neighbouring ones. `found` is shared memory.
class Histogram {
 public:
  static_assert(kBins == kThreads * kEach);

  __device__ Histogram(const unsigned* counts, const Uint64* masses) {
    Uint64 count = 0, mass = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      count += counts_[i] = counts[threadIdx.x * kEach + i];
      mass += masses_[i] = masses[threadIdx.x * kEach + i];
    }
    count_ = block_prefix(count);
    mass_ = block_prefix(mass);
  }

  __device__ Bins bins(const Settings& settings, Found* found) const {
    Bins bins;
    bins.total = mass_.total;
    Uint64 min_kept = mass_.total, max_kept = mass_.total;  // of what top-k keeps
    if (settings.top_k > 0 && static_cast<Uint64>(settings.top_k) < count_.total) {
      const Found end = find(count_.before, counts_, settings.top_k, found);
      bins.first = bins.last = bins.count_bin = end.bin;
      bins.count_before_it = end.count_before;
      bins.mass_before = bins.mass_before_it = min_kept = end.mass_before;
      max_kept = end.mass_before + end.mass;
    }
    if (settings.top_p < 1) {
      const Found begin = find(mass_.before, masses_, mass_goal(settings.top_p, min_kept), found);
      bins.first = begin.bin;
      bins.mass_before = begin.mass_before;
      bins.last = find(mass_.before, masses_, mass_goal(settings.top_p, max_kept), found).bin;
    }
    return bins;
  }

 private:
  // The bin at which the prefix sum reaches the goal; exactly one thread finds it.
  template <class Weight>
  __device__ Found find(Uint64 before, const Weight (&weights)[kEach], Uint64 goal, Found* found) const {
    Uint64 reached = before;
    Found here{static_cast<int>(threadIdx.x) * kEach, count_.before, mass_.before, 0};
    bool is_here = false;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Uint64 after = reached + weights[i];
      if (reached < goal && goal <= after) {
        is_here = true;
        here.bin += i;
        here.mass = masses_[i];
      } else if (after < goal) {
        here.count_before += counts_[i];
        here.mass_before += masses_[i];
      }
      reached = after;
    }
    __syncthreads();
    if (is_here) *found = here;
    __syncthreads();
    return *found;
  }

  unsigned counts_[kEach];
  Uint64 masses_[kEach];
  Prefix count_, mass_;
};

struct Candidate {
  uint32_t key;
  uint32_t id;
};

// The candidates of a row, in any order; results do not depend on it.
class Candidates {
 public:
  static constexpr int kHeld = 2048;  // at most this many are copied to shared memory

  __device__ Candidates(const Candidate* global, unsigned count, Candidate* shared)
      : global_(global), shared_(shared), count_(count) {
    if (count_ > kHeld) return;
    // No barrier: in each() a thread visits only the candidates that it has copied itself.
    for (unsigned i = threadIdx.x; i < count_; i += kThreads) shared_[i] = load(i);
  }

  template <class Visit>
  __device__ void each(Visit visit) const {
    if (count_ <= kHeld) {
      for (unsigned i = threadIdx.x; i < count_; i += kThreads) visit(shared_[i]);
    } else {
#pragma unroll 4
      for (unsigned i = threadIdx.x; i < count_; i += kThreads) visit(load(i));
    }
  }

 private:
  // Written by other blocks of this kernel, so L1 may be stale.
  __device__ Candidate load(unsigned i) const {
    const uint2 pair = __ldcg(reinterpret_cast<const uint2*>(global_) + i);
    return {pair.x, pair.y};
  }

  const Candidate* global_;
  Candidate* shared_;
  unsigned count_;
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
// is 0 for candidates to ignore; `before` is the weight of everything larger than the others. Each type of `weigh` has
// its own shared memory, so a kernel may call this once for each type.
template <class Weigh>
__device__ End find_end(const Candidates& candidates, Uint64 before, Uint64 goal, Weigh weigh) {
  constexpr int kPivots = 7;
  __shared__ uint32_t lowest, highest;
  if (threadIdx.x == 0) {
    lowest = 0xffffffffu;
    highest = 0;
  }
  __syncthreads();
  candidates.each([&](const Candidate& candidate) {
    if (weigh(candidate) == 0) return;
    atomicMin(&lowest, candidate.key);
    atomicMax(&highest, candidate.key);
  });
  __syncthreads();
  // Keys from `low` on reach the goal; keys from `high` on do not, their weight is `reached`.
  Uint64 low = lowest, high = Uint64{highest} + 1, reached = before;
  while (high - low > 1) {
    const Uint64 step = (high - low + kPivots) / (kPivots + 1);
    Uint64 sums[kPivots] = {};
    candidates.each([&](const Candidate& candidate) {
      const Uint64 weight = weigh(candidate);
#pragma unroll
      for (int i = 0; i < kPivots; ++i) sums[i] += candidate.key >= low + (i + 1) * step ? weight : 0;
    });
    block_sums(sums);
    const Uint64 from = low;
#pragma unroll
    for (int i = kPivots - 1; i >= 0; --i) {
      const Uint64 pivot = from + (i + 1) * step;
      if (pivot >= high || low > from) continue;
      if (before + sums[i] >= goal) {
        low = pivot;
      } else {
        high = pivot;
        reached = before + sums[i];
      }
    }
  }
  End end;
  end.key = static_cast<uint32_t>(low);
  end.ties = goal - reached;  // in units of the weight
  return end;
}

// The end of the row after all of its limits.
__device__ inline End find_end(const Settings& settings, const Row& row, const Bins& bins,
                               const Candidates& candidates) {
  const auto bin_of = [&](const Candidate& candidate) { return row.bin(value_of(candidate.key)); };
  const auto mass_of = [&](const Candidate& candidate) { return row.mass(value_of(candidate.key)); };
  End end;
  Uint64 kept = bins.total;
  if (bins.count_bin >= 0) {
    const auto is_here = [&](const Candidate& candidate) { return bin_of(candidate) == bins.count_bin; };
    end = find_end(candidates, bins.count_before_it, settings.top_k,
                   [&](const Candidate& candidate) { return Uint64{is_here(candidate)}; });
    Uint64 above = 0;
    candidates.each([&](const Candidate& candidate) {
      if (is_here(candidate) && candidate.key > end.key) above += mass_of(candidate);
    });
    kept = bins.mass_before_it + block_sum(above) + end.ties * row.mass(value_of(end.key));
  }
  if (settings.top_p < 1) {
    end = find_end(candidates, bins.mass_before, mass_goal(settings.top_p, kept), [&](const Candidate& candidate) {
      const int bin = bin_of(candidate);
      return bin >= bins.first && bin <= bins.last ? mass_of(candidate) : 0;
    });
    const Uint64 each = row.mass(value_of(end.key));
    end.ties = (end.ties + each - 1) / each;
  }
  return end;
}

}  // namespace adept::cuda::sampling
