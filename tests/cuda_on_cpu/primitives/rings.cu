// Rings of stages in shared memory, barriers of a part of a block, grids whose blocks wait for each other.

#include "../faults/faults.h"
#include "cuda/bulk_copy.cuh"
#include "cuda/grid_barrier.cuh"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kStages = 3;
constexpr int kStageInts = 64;
constexpr int kConsumerWarps = 3;
constexpr int kRounds = 10;

struct Ring {
  Mbarrier full[kStages], empty[kStages];
};

// Warp 0 fills stages, the others add them up: by one bulk copy a stage, or by 16 bytes a thread (8.x).
__global__ void ring(const int* x, int* sums) {
  __shared__ Ring barriers;
  int* const stages = dynamic_shared<int>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&barriers.full[i], has_bulk_copies() ? 1 : 16);
      mbarrier_init(&barriers.empty[i], kConsumerWarps);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  pdl_wait();
  if (warp() == 0) {
    for (int round = 0; round < kRounds; ++round) {
      const int stage = round % kStages;
      const unsigned parity = round / kStages % 2;
      int* const to = stages + stage * kStageInts;
      const int* const from = x + round * kStageInts;
      if (has_bulk_copies()) {
        if (lane() != 0) continue;
        mbarrier_wait(&barriers.empty[stage], parity ^ 1);
        mbarrier_arrive_expecting(&barriers.full[stage], kStageInts * sizeof(int));
        copy_bulk(to, from, kStageInts * 2, &barriers.full[stage]);
        copy_bulk(to + kStageInts / 2, from + kStageInts / 2, kStageInts * 2, &barriers.full[stage]);
      } else if (lane() < 16) {
        mbarrier_wait(&barriers.empty[stage], parity ^ 1);
        copy_async(to + 4 * lane(), from + 4 * lane());
        mbarrier_arrive_after_copies(&barriers.full[stage]);
      }
    }
    return;
  }
  int sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % kStages;
    mbarrier_wait(&barriers.full[stage], round / kStages % 2);
    const int* const held = stages + stage * kStageInts;
    sum += held[lane()] + held[kStageInts - 1 - lane()];
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(&barriers.empty[stage]);
  }
  sums[threadIdx.x - 32] = sum;
}

bool ring_carries() {
  Global<int> x(kRounds * kStageInts, 1), sums(32 * kConsumerWarps);
  const Shape shape{1, 32 * (1 + kConsumerWarps), kStages * kStageInts * sizeof(int)};
  if (!ran(shape, ring, x.data(), sums.data())) return false;
  for (int i = 0; i < 32 * kConsumerWarps; ++i) {
    int sum = 0;
    for (int round = 0; round < kRounds; ++round) {
      sum += x[round * kStageInts + i % 32] + x[round * kStageInts + kStageInts - 1 - i % 32];
    }
    if (sums[i] != sum) return false;
  }
  return true;
}

bool ring_of_8x_carries() {
  const Device device("ADEPT_CUDA_ON_CPU_BULK", "0");
  return ring_carries() && !overlaps_launches();
}

// Two halves of a block that meet apart from each other, one of them more often.
__global__ void halves(const int* x, int* out) {
  __shared__ int held[128];
  pdl_wait();
  const int half = static_cast<int>(threadIdx.x) / 64, i = static_cast<int>(threadIdx.x) % 64;
  int* const mine = held + half * 64;
  int value = x[threadIdx.x];
  for (int round = 0; round <= 2 * half; ++round) {
    mine[i] = value;
    sync_threads_of(1 + half, 64);
    value = mine[63 - i];
    sync_threads_of(1 + half, 64);
  }
  out[threadIdx.x] = value;
}

bool halves_meet() {
  Global<int> x(128, 1), out(128);
  if (!ran({1, 128}, halves, x.data(), out.data())) return false;
  for (int i = 0; i < 128; ++i)
    if (out[i] != x[i / 64 * 64 + 63 - i % 64]) return false;
  return true;
}

// Each round, every block adds up what all have written in the round before. What a block holds in static and dynamic
// shared memory and in registers stays its own while others run; a copy is under way meanwhile.
__global__ void rounds(const int* x, int* values, uint64_t* counter, int* out) {
  __shared__ int held[64];
  __shared__ Mbarrier landed;
  int* const dynamic = dynamic_shared<int>();
  const int blocks = static_cast<int>(gridDim.x), i = static_cast<int>(threadIdx.x);
  held[i] = 1000 * static_cast<int>(blockIdx.x) + i;
  if (i == 0) {
    mbarrier_init(&landed, 1);
    mbarrier_fence_init();
  }
  __syncthreads();
  pdl_wait();
  if (i == 0) {
    mbarrier_arrive_expecting(&landed, 64 * sizeof(int));
    copy_bulk(dynamic, x, 64 * sizeof(int), &landed);
  }
  int value = static_cast<int>(blockIdx.x) + 1;
  for (int round = 0; round < 4; ++round) {
    int* const of_round = values + round * blocks;
    if (i == 0) {
      of_round[blockIdx.x] = value;
      add_and_release(counter);
      wait_until_reached(counter, static_cast<uint64_t>(blocks * (round + 1)));
    }
    __syncthreads();
    value = 0;
    for (int block = 0; block < blocks; ++block) value += of_round[block];
  }
  mbarrier_wait(&landed, 0);
  const bool kept = held[i] == 1000 * static_cast<int>(blockIdx.x) + i && dynamic[i] == x[i];
  out[blockIdx.x * 64 + threadIdx.x] = kept ? value : -1;
}

template <int kBlocks, int kThreads>
bool rounds_add_up() {
  Global<int> x(64, 1), values(kBlocks * 4), out(kBlocks * 64);
  Global<uint64_t> counter(1);
  const Device device("ADEPT_CUDA_ON_CPU_MULTIPROCESSORS", "8");
  const bool good = ran({kBlocks, 64, 64 * sizeof(int)}, rounds, x.data(), values.data(), counter.data(), out.data());
  int value = kBlocks * (kBlocks + 1) / 2;
  for (int round = 1; round < 4; ++round) value *= kBlocks;
  return good && out.is_filled_with(value);
}

// As many threads as a grid of the kind may have.
__global__ void many(uint64_t* counter, uint64_t* seen) {
  pdl_wait();
  add_and_release(counter);
  wait_until_reached(counter, gridDim.x * blockDim.x);
  seen[blockIdx.x * blockDim.x + threadIdx.x] = 7;
}

bool many_wait() {
  Global<uint64_t> counter(1), seen(8 * 320);
  const Device device("ADEPT_CUDA_ON_CPU_MULTIPROCESSORS", "8");
  const bool good = ran({8, 320}, many, counter.data(), seen.data());
  return good && counter[0] == 8 * 320 && seen.is_filled_with(7);
}

const Registered kAll[] = {
    {"ring", ring_carries},
    {"ring_of_8x", ring_of_8x_carries},
    {"halves_meet", halves_meet},
    {"rounds_of_3_blocks", rounds_add_up<3, 64>},
    {"rounds_of_8_blocks", rounds_add_up<8, 64>},
    {"many_wait", many_wait},
};

}  // namespace
}  // namespace faults
