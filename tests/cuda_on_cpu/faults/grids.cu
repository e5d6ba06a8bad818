// Mistakes in how the blocks of a grid wait for each other, and parts of a block.

#include "cuda/grid_barrier.cuh"
#include "faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kBlocks = 4;
constexpr int kThreads = 64;
constexpr int kRounds = 3;

enum class Grid {
  kRight,
  kTargetTooLow,
  kTargetTooHigh,
  kAddsFirst,
  kWarpNotMet,
  kReadersNotMet,
  kPlainCounter,
  kReusedTooEarly,
};

// Each round, all blocks write, meet, and add up what all have written. Two buffers take turns.
template <Grid kGrid>
__global__ void rounds(const int* x, int* values, uint64_t* counter, int* sums) {
  pdl_wait();
  const unsigned blocks = gridDim.x;
  int sum = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    int* const buffer = values + (kGrid == Grid::kReusedTooEarly ? 0 : round % 2) * blocks * 2;
    if (kGrid == Grid::kAddsFirst && threadIdx.x == 0) add_and_release(counter);
    const int part = warp_sum(x[blockIdx.x * kThreads + threadIdx.x]) + static_cast<int>(round);
    if (lane() == 0) buffer[blockIdx.x * 2 + static_cast<unsigned>(warp())] = part;
    if (kGrid != Grid::kWarpNotMet) __syncthreads();
    if (threadIdx.x == 0) {
      if (kGrid == Grid::kPlainCounter) {
        ++*counter;
      } else if (kGrid != Grid::kAddsFirst) {
        add_and_release(counter);
      }
      const uint64_t target = blocks * (round + 1);
      wait_until_reached(counter, target - (kGrid == Grid::kTargetTooLow) + (kGrid == Grid::kTargetTooHigh));
    }
    if (kGrid != Grid::kReadersNotMet) __syncthreads();
    for (unsigned i = 0; i < blocks * 2; ++i) sum += buffer[i];
  }
  sums[blockIdx.x * kThreads + threadIdx.x] = sum;
}

template <Grid kGrid, int kBlocksOfGrid = kBlocks>
bool sums() {
  Global<int> x(kBlocksOfGrid * kThreads, 1), values(kBlocksOfGrid * 4), sums(kBlocksOfGrid * kThreads);
  Global<uint64_t> counter(1);
  const Shape shape{kBlocksOfGrid, kThreads};
  return ran(shape, rounds<kGrid>, x.data(), values.data(), counter.data(), sums.data()) &&
         sums.is_filled_with(kRounds * x.sum() + kRounds * (kRounds - 1) / 2 * kBlocksOfGrid * 2);
}

// The block that comes last in a round adds up what all have written, and clears the counter for the next round.
template <bool kFault>
__global__ void last_of_round(const int* x, int* parts, uint64_t* counters, int* sums) {
  __shared__ uint64_t seen;
  pdl_wait();
  const unsigned blocks = gridDim.x;
  for (unsigned round = 0; round < kRounds; ++round) {
    const int part = warp_sum(x[blockIdx.x * kThreads + threadIdx.x]) + static_cast<int>(round);
    if (lane() == 0) parts[blockIdx.x * 2 + static_cast<unsigned>(warp())] = part;
    if (!kFault) __syncthreads();
    if (threadIdx.x == 0) {
      seen = add_and_release(&counters[0]);
      if (seen == blocks - 1) counters[0] = 0;
    }
    __syncthreads();
    if (seen == blocks - 1 && threadIdx.x == 32) {
      for (unsigned i = 0; i < blocks * 2; ++i) sums[round] += parts[i];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      add_and_release(&counters[1]);
      wait_until_reached(&counters[1], blocks * (round + 1));
    }
    __syncthreads();
  }
}

template <bool kFault>
bool sums_of_rounds() {
  Global<int> x(kBlocks * kThreads, 1), parts(kBlocks * 2), sums(kRounds);
  Global<uint64_t> counters(2);
  const Shape shape{kBlocks, kThreads};
  return ran(shape, last_of_round<kFault>, x.data(), parts.data(), counters.data(), sums.data()) &&
         sums.sum() == kRounds * x.sum() + kRounds * (kRounds - 1) / 2 * kBlocks * 2 && counters[0] == 0;
}

enum class Part { kRight, kTooFew, kTooMany, kOneNumber, kNumbersDiffer, kNotWhole };

// Two groups of warps that meet apart from each other.
template <Part kPart>
__global__ void parts(const int* x, int* out) {
  __shared__ int held[4 * kThreads];
  pdl_wait();
  const int i = static_cast<int>(threadIdx.x);
  const int group = i / (2 * kThreads), first = group * 2 * kThreads;
  const int number = kPart == Part::kOneNumber ? 1 : 1 + group;
  int threads = 2 * kThreads;
  if (kPart == Part::kTooFew) threads -= 32;
  if (kPart == Part::kTooMany) threads += 32;
  if (kPart == Part::kNotWhole) threads -= 1;
  if (kPart == Part::kNumbersDiffer && warp() == 0) threads = 3 * kThreads;
  held[i] = x[i];
  sync_threads_of(number, threads);
  out[i] = held[first + 2 * kThreads - 1 - (i - first)];
}

template <Part kPart>
bool reverses_parts() {
  Global<int> x(4 * kThreads, 1), out(4 * kThreads);
  if (!ran({1, 4 * kThreads}, parts<kPart>, x.data(), out.data())) return false;
  for (int i = 0; i < 4 * kThreads; ++i)
    if (out[i] != x[i / (2 * kThreads) * 2 * kThreads + 2 * kThreads - 1 - i % (2 * kThreads)]) return false;
  return true;
}

const Registered kAll[] = {
    {"grid_target_too_low", sums<Grid::kRight>, sums<Grid::kTargetTooLow>},
    {"grid_target_too_high", sums<Grid::kRight>, sums<Grid::kTargetTooHigh>},
    {"grid_adds_first", sums<Grid::kRight>, sums<Grid::kAddsFirst>},
    {"grid_warp_not_met", sums<Grid::kRight>, sums<Grid::kWarpNotMet>},
    {"grid_readers_not_met", sums<Grid::kRight>, sums<Grid::kReadersNotMet>},
    {"grid_plain_counter", sums<Grid::kRight>, sums<Grid::kPlainCounter>},
    {"grid_buffer_reused_too_early", sums<Grid::kRight>, sums<Grid::kReusedTooEarly>},
    {"grid_last_before_all_wrote", sums_of_rounds<false>, sums_of_rounds<true>},
    {"grid_larger_than_device", sums<Grid::kRight>, sums<Grid::kRight, kBlocks + 1>},
    {"part_too_few", reverses_parts<Part::kRight>, reverses_parts<Part::kTooFew>},
    {"part_too_many", reverses_parts<Part::kRight>, reverses_parts<Part::kTooMany>},
    {"part_one_number", reverses_parts<Part::kRight>, reverses_parts<Part::kOneNumber>},
    {"part_counts_differ", reverses_parts<Part::kRight>, reverses_parts<Part::kNumbersDiffer>},
    {"part_not_whole_warps", reverses_parts<Part::kRight>, reverses_parts<Part::kNotWhole>},
};

}  // namespace
}  // namespace faults
