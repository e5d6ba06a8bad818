// Lists the neurons that are active (not 0) for some token, in order, from their bits; a block makes its own list.
//
// 16384 neurons are 512 words of bits, one for each thread. A warp takes about a hundred instructions, however many
// neurons are active: it counts the bits, sums the counts of the words before, and writes those of the block's share,
// 32 neurons at a time.
#pragma once

#include <cstdint>

#include "cuda/reduce.cuh"

namespace adept::cuda {

template <int kThreads>
class CompactNonzeros {
 public:
  static constexpr int kWords = kThreads;  // in one round
  struct Shared {
    uint32_t words[kWords];
    int before[kWords];  // neurons listed by the words before
    int of_warp[kThreads / kWarpSize];
  };

  // `bits`: [words], 32 neurons each.
  __device__ CompactNonzeros(const uint32_t* bits, int words, Shared& shared)
      : bits_(bits), words_(words), shared_(shared) {
    int mine = 0;
    for (int word = threadIdx.x; word < words; word += kThreads) mine += __popc(bits[word]);
    count_ = sum_over_block(mine);
  }

  __device__ int count() const { return count_; }

  // Writes entries `begin` to `end` (excluded) of the list. All threads call this; a barrier makes entries readable.
  __device__ void list(int begin, int end, uint32_t* neurons) {
    int listed = 0;  // in the rounds before
    for (int first = 0; first < words_ && listed < end; first += kWords) {
      const int word = first + static_cast<int>(threadIdx.x);
      const uint32_t bits = word < words_ ? bits_[word] : 0;
      __syncthreads();  // the previous round or list may still be being read
      const int up_to = sum_up_to(__popc(bits));
      shared_.words[threadIdx.x] = bits;
      shared_.before[threadIdx.x] = listed + up_to - __popc(bits);
      __syncthreads();
      write(first, begin, end, neurons);
      listed = shared_.before[kWords - 1] + __popc(shared_.words[kWords - 1]);
    }
  }

 private:
  static constexpr int kWarps = kThreads / kWarpSize;

  // Neighbouring words go to different warps, because a share of the list comes from neighbouring words. Each lane
  // tests one of its warp's words; then the warp writes the entries of those words that have any in the share.
  __device__ void write(int first, int begin, int end, uint32_t* neurons) const {
    const int seen = warp_index() + lane_index() * kWarps;
    const int before = shared_.before[seen];
    const bool matters = before < end && before + __popc(shared_.words[seen]) > begin;
    for (unsigned left = __ballot_sync(kWholeWarp, matters); left != 0; left &= left - 1) {
      const int word = warp_index() + (__ffs(static_cast<int>(left)) - 1) * kWarps;
      const uint32_t bits = shared_.words[word];
      const int at = shared_.before[word] + __popc(bits & ((1u << lane_index()) - 1));
      if ((bits >> lane_index() & 1) != 0 && at >= begin && at < end)
        neurons[at - begin] = static_cast<uint32_t>((first + word) * 32 + lane_index());
    }
  }

  __device__ int sum_over_block(int mine) {
    mine = warp_sum(mine);
    if (lane_index() == 0) shared_.of_warp[warp_index()] = mine;
    __syncthreads();
    int sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared_.of_warp[warp];
    return sum;
  }

  // The sum over the threads up to and including this one.
  __device__ int sum_up_to(int mine) {
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const int below = __shfl_up_sync(kWholeWarp, mine, distance);
      if (lane_index() >= distance) mine += below;
    }
    if (lane_index() == kWarpSize - 1) shared_.of_warp[warp_index()] = mine;
    __syncthreads();
    for (int warp = 0; warp < warp_index(); ++warp) mine += shared_.of_warp[warp];
    return mine;
  }

  const uint32_t* bits_;
  const int words_;
  Shared& shared_;
  int count_;
};

}  // namespace adept::cuda
