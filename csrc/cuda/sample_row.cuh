// A row of logits that an id is drawn from: its settings, its scaled logits, their order and their masses.
//
// Logits are ordered by keys, integers in the order of the scaled float32 logits; equal logits by their ids, as in the
// definition (adept_fast/ops/sample.py). Probabilities are masses: exp(z - highest), computed in float32, in units of
// 2^-40, rounded to nearest. Sums of such integers are exact in any order. A mass has a relative error of 3e-7 (6e-8
// more for each 1 that z is below the highest) and a rounding error of half a unit, so a token of less than 2^-41 of
// the largest probability is never drawn.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/sample_sums.cuh"
#include "cuda/workspace.h"

namespace adept::cuda::sampling {

constexpr int kEach = 8;                 // logits of a thread
constexpr int kTile = kThreads * kEach;  // of a block
static_assert(kTile == kSampleTile);
constexpr int64_t kMaxVocab = kTile * kThreads;  // one thread for each tile
constexpr float kMassOfOne = 1099511627776.0f;   // 2^40
constexpr float kDepth = 28.5f;                  // masses are 0 this far below the highest
constexpr int64_t kInvalid = -1;

// -0 and 0 are the same.
__device__ __forceinline__ uint32_t key_of(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The settings of a row's slot.
struct Settings {
  int64_t slot;
  bool exists;  // the slot is in range; the others are set only if it is
  bool is_biased;
  float temperature;
  float top_p;
  float min_p;
  float penalty;  // of repetition
  float frequency;
  float presence;
  int64_t top_k;

  __device__ static Settings of(const Sample& sample, int64_t token) {
    Settings settings;
    const int64_t slot = settings.slot = sample.slots[token];
    settings.exists = in_range(slot, sample.slot_count);
    if (!settings.exists) return settings;
    settings.is_biased = sample.is_biased[slot];
    settings.temperature = sample.temperature[slot];
    settings.top_p = sample.top_p[slot];
    settings.min_p = sample.min_p[slot];
    settings.penalty = sample.repetition_penalty[slot];
    settings.frequency = sample.frequency_penalty[slot];
    settings.presence = sample.presence_penalty[slot];
    settings.top_k = sample.top_k[slot];
    return settings;
  }

  __device__ bool draws() const { return temperature > 0; }
  __device__ bool limits() const { return draws() && (top_k > 0 || top_p < 1); }
  __device__ bool counts() const { return frequency != 0 || presence != 0; }
};

// Ids of a thread in a tile, each beside those of its neighbours.
__device__ __forceinline__ void take_ids(int tile, int (&ids)[kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) ids[i] = tile * kTile + i * kThreads + threadIdx.x;
}

// Some logits as the model gave them, -inf for ids from the vocabulary's end on. All loads are under way at once.
template <int kCount>
__device__ __forceinline__ void load_logits(const float* row, int64_t vocab, const int (&ids)[kCount],
                                            float (&z)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) z[i] = ids[i] < vocab ? row[ids[i]] : -INFINITY;
}

// The logits of a row with its settings.
struct Logits {
  const Sample& sample;
  const Settings& settings;
  int64_t token;

  __device__ const float* row() const { return sample.logits + token * sample.vocab; }

  // Applies the bias and the penalties, with all loads of a kind at once. Each operation rounds, as in the definition:
  // none are fused.
  template <int kCount>
  __device__ __forceinline__ void adjust(const int (&ids)[kCount], float (&z)[kCount]) const {
    const int64_t first = settings.slot * sample.vocab;
    if (settings.is_biased) {
      const float* const bias = sample.logit_bias + first;
#pragma unroll
      for (int i = 0; i < kCount; ++i) z[i] = ids[i] < sample.vocab ? __fadd_rn(z[i], bias[ids[i]]) : z[i];
    }
    if (settings.penalty != 1) {
      const bool* const seen = sample.seen + first;
      bool is_seen[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) is_seen[i] = ids[i] < sample.vocab && seen[ids[i]];
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (is_seen[i]) z[i] = z[i] > 0 ? z[i] / settings.penalty : __fmul_rn(z[i], settings.penalty);
    }
    if (settings.counts()) {
      const int32_t* const counts = sample.counts + first;
      int32_t count[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) count[i] = ids[i] < sample.vocab ? counts[ids[i]] : 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        z[i] = __fsub_rn(z[i], __fmul_rn(settings.frequency, static_cast<float>(count[i])));
        if (count[i] > 0) z[i] = __fsub_rn(z[i], settings.presence);
      }
    }
  }

  // The same, and divides by the temperature.
  template <int kCount>
  __device__ __forceinline__ void scale(const int (&ids)[kCount], float (&z)[kCount]) const {
    adjust(ids, z);
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = ids[i] < sample.vocab ? z[i] / settings.temperature : -INFINITY;
  }

  template <int kCount>
  __device__ __forceinline__ void load_scaled(const int (&ids)[kCount], float (&z)[kCount]) const {
    load_logits(row(), sample.vocab, ids, z);
    scale(ids, z);
  }
};

// The extremes of some logits, and after merging of all.
struct Extremes {
  Uint64 best;      // the key of the largest adjusted logit, and below it the complement of the smallest such id
  uint32_t lowest;  // the key of the smallest adjusted logit that is not -inf
  uint32_t found;   // a union of the bits below

  static constexpr uint32_t kPossible = 1;  // a logit above -inf
  static constexpr uint32_t kBad = 2;       // a NaN or +inf

  __device__ static Extremes none() { return {0, 0xffffffffu, 0}; }

  // A logit before bias and penalties.
  __device__ void look_at(float raw) { found |= raw < INFINITY ? (raw > -INFINITY ? kPossible : 0) : kBad; }

  __device__ void add(int64_t id, float adjusted) {
    const uint32_t key = key_of(adjusted);
    add({Uint64{key} << 32 | static_cast<uint32_t>(~id), adjusted > -INFINITY ? key : 0xffffffffu, 0});
  }

  __device__ void add(const Extremes& other) {
    best = other.best > best ? other.best : best;
    lowest = other.lowest < lowest ? other.lowest : lowest;
    found |= other.found;
  }

  // Those of all lanes of a warp. Of 64 bits at once, this would be a chain of twenty shuffles.
  __device__ Extremes of_warp() const {
    const auto key = static_cast<uint32_t>(best >> 32);
    const uint32_t best_key = __reduce_max_sync(kWholeWarp, key);
    const uint32_t id = __reduce_max_sync(kWholeWarp, key == best_key ? static_cast<uint32_t>(best) : 0);
    return {Uint64{best_key} << 32 | id, __reduce_min_sync(kWholeWarp, lowest), __reduce_or_sync(kWholeWarp, found)};
  }

  // Merges those of all threads; every thread gets the result. A kernel may call it only once.
  __device__ Extremes of_block() const {
    __shared__ Extremes of_warps[kWarps];
    const Extremes mine = of_warp();
    if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = mine;
    __syncthreads();
    return of_warps[threadIdx.x % kWarps].of_warp();
  }
};

// A row whose extremes are known; it gives logits their masses and bins.
struct Row {
  bool is_valid;
  bool is_drawn;  // otherwise the result is the likeliest
  int64_t likeliest;
  float highest;        // logit over temperature
  float bins_per_unit;  // bins divide the range of at most kDepth below the highest
  float least;          // below the highest, what min-p leaves: the logarithm of min-p

  __device__ static Row of(const Extremes& extremes, const Settings& settings) {
    Row row;
    row.is_valid = settings.exists && extremes.found == Extremes::kPossible;
    row.likeliest = static_cast<uint32_t>(~extremes.best);
    row.highest = value_of(static_cast<uint32_t>(extremes.best >> 32)) / settings.temperature;
    // An overflow in a penalty or the temperature leaves no distribution either.
    row.is_drawn = row.is_valid && settings.draws() && std::isfinite(row.highest);
    const float range = fminf(kDepth, row.highest - value_of(extremes.lowest) / settings.temperature);
    row.bins_per_unit = range > 1e-30f ? kBins / range : 0;
    row.least = settings.min_p <= 0 ? -INFINITY : logf(settings.min_p);
    return row;
  }

  __device__ Uint64 mass(float z) const {
    const float units = expf(z - highest) * kMassOfOne;
    return units > 0 ? static_cast<Uint64>(llrintf(units)) : 0;
  }

  // Whether min-p leaves it: if so, it leaves all larger logits too, however expf rounds.
  __device__ bool passes(float z) const { return z - highest >= least; }

  // For logits whose mass is not 0. Larger logits are in smaller bins.
  __device__ int bin(float z) const {
    const int at = static_cast<int>((highest - z) * bins_per_unit);
    return at < kBins ? at : kBins - 1;
  }
};

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
__device__ __forceinline__ Uint64 mix(Uint64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// A random number in [0, 1) of 53 bits, in units of 2^-64.
__device__ __forceinline__ Uint64 random_bits(Uint64 seed, Uint64 position) {
  constexpr Uint64 kGolden = 0x9e3779b97f4a7c15u;
  return mix(mix(seed + kGolden) + position * kGolden) & ~Uint64{2047};
}

}  // namespace adept::cuda::sampling
