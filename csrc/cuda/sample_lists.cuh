// What the kernels of sample leave for each other: of each row the extremes of its tiles, and the tokens of each tile
// in bins, those of the largest logits first.
#pragma once

#include <cstdint>

#include "cuda/sample_row.cuh"

namespace adept::cuda::sampling {

constexpr int kBinsEach = kBins / kThreads;  // neighbouring bins of a thread
constexpr int kBinsOfGroup = kBins / kGroups;
constexpr int kBinsBits = 10;
static_assert(kBinsEach == 4 && kBins == 1 << kBinsBits && kBinsOfGroup == 16 && kGroups == 2 * kWarpSize);

// A count and a mass of tokens of a tile in one integer, so that one sum adds both: 2048 masses are below 2^52.
constexpr int kMassBits = 52;
static_assert(kTile * kMassOfOne < (Uint64{1} << kMassBits) && kTile < 1 << (64 - kMassBits));
__device__ __forceinline__ Uint64 mass_in(Uint64 sums) { return sums & ((Uint64{1} << kMassBits) - 1); }
__device__ __forceinline__ unsigned count_in(Uint64 sums) { return static_cast<unsigned>(sums >> kMassBits); }

struct Workspace {
  char* memory;
  int64_t bytes_of_row;
};

// Of one row. Addresses are computed where they are used: kept, they would take registers.
class Lists {
 public:
  __device__ Lists(const Workspace& workspace, int64_t token, int tiles)
      : memory_(workspace.memory + token * workspace.bytes_of_row), tiles_(tiles) {
    static_assert(sizeof(Extremes) == 16);
  }

  // Count and mass of a tile's tokens up to the end of each bin.
  __device__ Uint64* prefixes(int tile) const { return reinterpret_cast<Uint64*>(memory_) + int64_t{tile} * kBins; }
  // Places in the tile, bin by bin, in any order in a bin.
  __device__ uint16_t* sorted(int tile) const {
    return reinterpret_cast<uint16_t*>(prefixes(tiles_)) + int64_t{tile} * kTile;
  }
  // [tiles]
  __device__ Extremes* extremes() const { return reinterpret_cast<Extremes*>(sorted(tiles_)); }
  // [kGroups], of all tiles
  __device__ Uint64* group_masses() const { return reinterpret_cast<Uint64*>(extremes() + tiles_); }
  __device__ unsigned* group_counts() const { return reinterpret_cast<unsigned*>(group_masses() + kGroups); }
  // [tiles]: mass that min-p leaves
  __device__ Uint64* passing() const { return reinterpret_cast<Uint64*>(group_counts() + kGroups); }
  // [1]: blocks that are done
  __device__ unsigned* arrivals() const { return reinterpret_cast<unsigned*>(passing() + tiles_); }

 private:
  char* memory_;
  int tiles_;
};

// Masses are added as two halves of 20 bits: 4095 masses do not overflow them.
struct Halves {
  static constexpr int kBits = 20;

  __device__ __forceinline__ static void add(unsigned* low, unsigned* high, Uint64 mass) {
    atomicAdd(low, static_cast<unsigned>(mass & ((1u << kBits) - 1)));
    const auto above = static_cast<unsigned>(mass >> kBits);
    if (above > 0) atomicAdd(high, above);  // most tokens of a row are far from the likeliest
  }

  __device__ __forceinline__ static Uint64 sum(unsigned low, unsigned high) { return (Uint64{high} << kBits) + low; }
};

// The bins of a tile, in shared memory.
struct Bins {
  unsigned counts[kBins];  // and then, where each bin begins
  unsigned low[kBins];
  unsigned high[kBins];

  __device__ void clear() {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) counts[bin] = low[bin] = high[bin] = 0;
  }

  // Returns how many are there before.
  __device__ unsigned add(int bin, Uint64 mass) {
    Halves::add(&low[bin], &high[bin], mass);
    return atomicAdd(&counts[bin], 1u);
  }

  // Stores the prefix sums, and adds to the sums of groups; returns the sums of the tile. No thread may add any more.
  __device__ Uint64 store(const Lists& lists, int tile) {
    const int first = threadIdx.x * kBinsEach;
    Uint64 up_to[kBinsEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i)
      up_to[i] = sum += (Uint64{counts[first + i]} << kMassBits) + Halves::sum(low[first + i], high[first + i]);
    const Prefix prefix = block_prefix(sum);
    ulonglong2* const to = reinterpret_cast<ulonglong2*>(lists.prefixes(tile) + first);
#pragma unroll
    for (int i = 0; i < kBinsEach; i += 2) to[i / 2] = {prefix.before + up_to[i], prefix.before + up_to[i + 1]};
    counts[first] = count_in(prefix.before);
#pragma unroll
    for (int i = 1; i < kBinsEach; ++i) counts[first + i] = count_in(prefix.before + up_to[i - 1]);

    constexpr int kLanes = kBinsOfGroup / kBinsEach;
    sum = warp_sum<kLanes>(sum);
    if (threadIdx.x % kLanes == 0 && sum > 0) {
      atomicAdd(&lists.group_masses()[threadIdx.x / kLanes], mass_in(sum));
      atomicAdd(&lists.group_counts()[threadIdx.x / kLanes], count_in(sum));
    }
    return prefix.total;
  }
};

}  // namespace adept::cuda::sampling
