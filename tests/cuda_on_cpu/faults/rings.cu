// Mistakes in rings of stages that one warp fills and others read, on mbarriers: with bulk copies, or without (8.x).

#include "cuda/bulk_copy.cuh"
#include "faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kStages = 2;
constexpr int kInts = 64;  // of a stage
constexpr int kRounds = 6;
constexpr int kReaders = 2;  // warps
constexpr uint32_t kBytes = kInts * sizeof(int);
constexpr int kCopiers = kBytes / 16;  // lanes that fill a stage without bulk copies

enum class Ring {
  kRight,
  kWrongParity,
  kReadWithoutWait,
  kReadAfterArrival,
  kInitNotFenced,
  kInitNotMet,
  kNotInitialised,
  kInitialisedTwice,
  kOverwritten,
  kEmptyTooFew,
  kArrivesTwice,
  kTooFewBytes,
  kTooManyBytes,
  kMisaligned,
  kOddSize,
  kPastTheEnd,
  kUnderWayAtEnd,
  kOneDoesNotArrive,
  kArrivesBeforeCopies,
};

template <Ring kRing>
__device__ void fill_by_bulk_copies(int* stage, const int* from, Mbarrier* full) {
  constexpr uint32_t kHalf = kBytes / 2;
  const uint32_t announced = kRing == Ring::kTooFewBytes || kRing == Ring::kArrivesTwice ? kHalf
                             : kRing == Ring::kTooManyBytes                              ? kBytes + 16
                                                                                         : kBytes;
  mbarrier_arrive_expecting(full, announced);
  copy_bulk(stage, from + (kRing == Ring::kMisaligned ? 1 : 0), kHalf, full);
  if (kRing == Ring::kArrivesTwice) mbarrier_arrive_expecting(full, kHalf);
  const uint32_t bytes = kHalf + (kRing == Ring::kOddSize ? 4 : kRing == Ring::kPastTheEnd ? kBytes : 0);
  copy_bulk(stage + kInts / 2, from + kInts / 2, bytes, full);
}

template <Ring kRing>
__device__ void fill_by_lanes(int* stage, const int* from, Mbarrier* full) {
  copy_async(stage + 4 * lane(), from + 4 * lane());
  if (kRing == Ring::kOneDoesNotArrive && lane() == 5) return;
  if (kRing == Ring::kArrivesBeforeCopies) return mbarrier_arrive(full);
  mbarrier_arrive_after_copies(full);
}

template <Ring kRing>
__device__ void fill(int (*stages)[kInts], Mbarrier* full, Mbarrier* empty, const int* x) {
  if (lane() >= (has_bulk_copies() ? 1 : kCopiers)) return;
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % kStages;
    if (kRing != Ring::kOverwritten) mbarrier_wait(&empty[stage], round / kStages % 2 ^ 1);
    const int* const from = x + round * kInts;
    if (has_bulk_copies()) {
      fill_by_bulk_copies<kRing>(stages[stage], from, &full[stage]);
    } else {
      fill_by_lanes<kRing>(stages[stage], from, &full[stage]);
    }
  }
  if (kRing == Ring::kUnderWayAtEnd) {
    mbarrier_wait(&empty[0], kRounds / kStages % 2 ^ 1);
    fill_by_bulk_copies<kRing>(stages[0], x, &full[0]);
  }
}

template <Ring kRing>
__global__ void ring(const int* x, int* sums) {
  __shared__ __align__(16) int stages[kStages][kInts];
  __shared__ Mbarrier full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int i = 0; i < (kRing == Ring::kNotInitialised ? 1 : kStages); ++i) {
      mbarrier_init(&full[i], has_bulk_copies() ? 1 : kCopiers);
      mbarrier_init(&empty[i], kRing == Ring::kEmptyTooFew ? 1 : kReaders);
    }
    if (kRing == Ring::kInitialisedTwice) mbarrier_init(&full[0], 1);
    if (kRing != Ring::kInitNotFenced) mbarrier_fence_init();
  }
  if (kRing != Ring::kInitNotMet) __syncthreads();
  pdl_wait();
  if (warp() == 0) return fill<kRing>(stages, full, empty, x);
  int sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round % kStages;
    if (kRing != Ring::kReadWithoutWait) {
      mbarrier_wait(&full[stage], (round / kStages + (kRing == Ring::kWrongParity ? 1 : 0)) % 2);
    }
    if (kRing == Ring::kReadAfterArrival && lane() == 0) mbarrier_arrive(&empty[stage]);
    sum += stages[stage][lane()] + stages[stage][kInts - 1 - lane()];
    __syncwarp();
    if (kRing != Ring::kReadAfterArrival && lane() == 0) mbarrier_arrive(&empty[stage]);
  }
  sums[threadIdx.x - 32] = sum;
}

template <Ring kRing>
bool sums() {
  Global<int> x(kRounds * kInts, 1), sums(32 * kReaders);
  if (!ran({1, 32 * (1 + kReaders)}, ring<kRing>, x.data(), sums.data())) return false;
  int sum = 0;
  for (int i = 0; i < 32 * kReaders; ++i) {
    int expected = 0;
    for (int round = 0; round < kRounds; ++round) {
      expected += x[round * kInts + i % 32] + x[round * kInts + kInts - 1 - i % 32];
    }
    sum += sums[i] == expected;
  }
  return sum == 32 * kReaders;
}

template <Ring kRing>
bool sums_on_8x() {
  const Device device("ADEPT_CUDA_ON_CPU_BULK", "0");
  return sums<kRing>();
}

const Registered kAll[] = {
    {"ring_wrong_parity", sums<Ring::kRight>, sums<Ring::kWrongParity>},
    {"ring_read_without_wait", sums<Ring::kRight>, sums<Ring::kReadWithoutWait>},
    {"ring_read_after_arrival", sums<Ring::kRight>, sums<Ring::kReadAfterArrival>},
    {"ring_init_not_fenced", sums<Ring::kRight>, sums<Ring::kInitNotFenced>},
    {"ring_init_not_met", sums<Ring::kRight>, sums<Ring::kInitNotMet>},
    {"ring_not_initialised", sums<Ring::kRight>, sums<Ring::kNotInitialised>},
    {"ring_initialised_twice", sums<Ring::kRight>, sums<Ring::kInitialisedTwice>},
    {"ring_overwritten", sums<Ring::kRight>, sums<Ring::kOverwritten>},
    {"ring_empty_too_few", sums<Ring::kRight>, sums<Ring::kEmptyTooFew>},
    {"ring_arrives_twice", sums<Ring::kRight>, sums<Ring::kArrivesTwice>},
    {"ring_too_few_bytes", sums<Ring::kRight>, sums<Ring::kTooFewBytes>},
    {"ring_too_many_bytes", sums<Ring::kRight>, sums<Ring::kTooManyBytes>},
    {"ring_misaligned", sums<Ring::kRight>, sums<Ring::kMisaligned>},
    {"ring_odd_size", sums<Ring::kRight>, sums<Ring::kOddSize>},
    {"ring_past_the_end", sums<Ring::kRight>, sums<Ring::kPastTheEnd>},
    {"ring_under_way_at_end", sums<Ring::kRight>, sums<Ring::kUnderWayAtEnd>},
    {"ring_8x_overwritten", sums_on_8x<Ring::kRight>, sums_on_8x<Ring::kOverwritten>},
    {"ring_8x_one_does_not_arrive", sums_on_8x<Ring::kRight>, sums_on_8x<Ring::kOneDoesNotArrive>},
    {"ring_8x_arrives_before_copies", sums_on_8x<Ring::kRight>, sums_on_8x<Ring::kArrivesBeforeCopies>},
    {"ring_8x_read_without_wait", sums_on_8x<Ring::kRight>, sums_on_8x<Ring::kReadWithoutWait>},
};

}  // namespace
}  // namespace faults
