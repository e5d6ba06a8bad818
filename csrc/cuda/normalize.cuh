// Prepares a token's inputs for the tensor cores: normalised, scaled by a power of two to fit float16, rounded to the
// weights' dtype, and in the order in which lanes read them.
//
// The order: a lane loads 16 bytes of a row of W, 4 lanes side by side, so lane t of 4 has kPerLoad neighbouring
// weights. The product needs the matching inputs 8 at a time (16 bytes). The 8 inputs that lane t needs as its j-th are
// at 4 j + t of the step, so the 4 lanes read 64 neighbouring bytes, and 8 lanes have no bank conflicts.
#pragma once

#include "cuda/formats.cuh"
#include "cuda/reduce.cuh"

namespace adept::cuda {

constexpr int kRun = 8;  // inputs that are read and written together, 16 bytes

// A step of the product is one load of 4 lanes; a chunk is the steps that are in flight together.
template <Format kFormat>
constexpr int kStepCols = 4 * kPerLoad<kFormat>;
constexpr int kStepsInFlight = 4;
template <Format kFormat>
constexpr int kChunkCols = kStepsInFlight * kStepCols<kFormat>;

template <Format kFormat>
__host__ __device__ constexpr int chunks_of(int64_t cols) {
  return (static_cast<int>(cols) + kChunkCols<kFormat> - 1) / kChunkCols<kFormat>;
}

// Runs in a token's inputs: whole chunks and 64 bytes of padding, so that the next token has the other banks.
template <Format kFormat>
__host__ __device__ constexpr int row_runs(int64_t cols) {
  return chunks_of<kFormat>(cols) * (kChunkCols<kFormat> / kRun) + 4;
}

// The position of columns 8 i to 8 i + 7 in the row.
template <Format kFormat>
__device__ __forceinline__ int position_of_run(int i) {
  constexpr int kRunsOfLane = kPerLoad<kFormat> / kRun;
  const int step = i / (4 * kRunsOfLane), lane = i / kRunsOfLane % 4, j = i % kRunsOfLane;
  return (step * kRunsOfLane + j) * 4 + lane;
}

__device__ __forceinline__ void read_run(const float* from, float (&run)[kRun]) {
  const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
  run[0] = low.x, run[1] = low.y, run[2] = low.z, run[3] = low.w;
  run[4] = high.x, run[5] = high.y, run[6] = high.z, run[7] = high.w;
}

// A run times a power of two, rounded.
template <Format kFormat>
__device__ __forceinline__ uint4 pack_run(const float (&run)[kRun], float scale) {
  return {
      Element<kFormat>::pack(run[0] * scale, run[1] * scale), Element<kFormat>::pack(run[2] * scale, run[3] * scale),
      Element<kFormat>::pack(run[4] * scale, run[5] * scale), Element<kFormat>::pack(run[6] * scale, run[7] * scale)};
}

// LayerNorm of one token by a team; the identity if gamma is null. A thread holds its first kHeld runs in registers and
// reads the others again, from L1.
template <class Team, int kHeld>
class TokenNorm {
 public:
  __device__ TokenNorm(const float* x, const Norm& norm, int cols, float* scratch)
      : x_(x), norm_(norm), runs_(cols / kRun) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (run_of(k) < runs_) read_run(x + run_of(k) * kRun, held_[k]);
    if (norm.gamma == nullptr) return;
    float sum = 0;
    each_run([&](int, const float (&run)[kRun]) {
#pragma unroll
      for (float value : run) sum += value;
    });
    mean_ = team_sum<Team>(sum, scratch) / static_cast<float>(cols);
    float squares = 0;
    each_run([&](int, const float (&run)[kRun]) {
#pragma unroll
      for (float value : run) squares += (value - mean_) * (value - mean_);
    });
    inverse_deviation_ = rsqrtf(team_sum<Team>(squares, scratch) / static_cast<float>(cols) + norm.eps);
  }

  // Calls visit(i, inputs) for this thread's runs i, in order.
  template <class Visit>
  __device__ __forceinline__ void each(Visit visit) const {
    each_run([&](int i, const float (&from)[kRun]) {
      float run[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) run[k] = from[k];
      if (norm_.gamma != nullptr) {
        float gamma[kRun], beta[kRun];
        read_run(norm_.gamma + i * kRun, gamma);
        read_run(norm_.beta + i * kRun, beta);
#pragma unroll
        for (int k = 0; k < kRun; ++k) run[k] = (run[k] - mean_) * inverse_deviation_ * gamma[k] + beta[k];
      }
      visit(i, run);
    });
  }

 private:
  static __device__ __forceinline__ int run_of(int k) { return static_cast<int>(threadIdx.x) + k * Team::threads(); }

  template <class Visit>
  __device__ __forceinline__ void each_run(Visit visit) const {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (run_of(k) < runs_) visit(run_of(k), held_[k]);
#pragma unroll 1
    for (int i = run_of(kHeld); i < runs_; i += Team::threads()) {
      float run[kRun];
      read_run(x_ + i * kRun, run);
      visit(i, run);
    }
  }

  const float* x_;
  Norm norm_;
  int runs_;
  float held_[kHeld > 0 ? kHeld : 1][kRun];
  float mean_ = 0;
  float inverse_deviation_ = 1;
};

// One warp in the place of a team: its lanes have the runs of all the team's threads, and its sums their order.
template <class Team>
class TeamInWarp {
 public:
  // Calls visit(i) for all runs i of this lane's threads, one thread after the other, and returns the sum or the
  // maximum over the team of what a thread has collected.
  template <class Visit, class Combine, class OfWarp>
  static __device__ __forceinline__ float reduce(int runs, Visit visit, Combine combine, OfWarp of_warp) {
    float all = 0;
#pragma unroll 1
    for (int warp = 0; warp < Team::threads() / kWarpSize; ++warp) {
      float mine = 0;
      for (int i = warp * kWarpSize + lane_index(); i < runs; i += Team::threads()) visit(i, mine);
      const float sum = of_warp(mine);
      all = warp == 0 ? sum : combine(all, sum);
    }
    return all;
  }
};

// prepare_token by one warp, with the same bits, so that the warps of a team prepare 8 tokens side by side.
template <Format kFormat, class Team>
__device__ float prepare_token_by_warp(const float* x, const Norm& norm, int cols, uint4* row) {
  using Reduction = TeamInWarp<Team>;
  const int runs = cols / kRun;
  const auto sum_of_warp = [](float value) { return warp_sum(value); };
  float mean = 0, inverse_deviation = 1;
  if (norm.gamma != nullptr) {
    const float sum = Reduction::reduce(
        runs,
        [&](int i, float& to) {
          float run[kRun];
          read_run(x + i * kRun, run);
#pragma unroll
          for (float value : run) to += value;
        },
        Plus(), sum_of_warp);
    mean = sum / static_cast<float>(cols);
    const float squares = Reduction::reduce(
        runs,
        [&](int i, float& to) {
          float run[kRun];
          read_run(x + i * kRun, run);
#pragma unroll
          for (float value : run) to += (value - mean) * (value - mean);
        },
        Plus(), sum_of_warp);
    inverse_deviation = rsqrtf(squares / static_cast<float>(cols) + norm.eps);
  }
  const auto read = [&](int i, float (&run)[kRun]) {
    read_run(x + i * kRun, run);
    if (norm.gamma == nullptr) return;
    float gamma[kRun], beta[kRun];
    read_run(norm.gamma + i * kRun, gamma);
    read_run(norm.beta + i * kRun, beta);
#pragma unroll
    for (int k = 0; k < kRun; ++k) run[k] = (run[k] - mean) * inverse_deviation * gamma[k] + beta[k];
  };
  PowerOfTwo scale = {1, 1};
  if constexpr (Element<kFormat>::kNarrow)
    scale = scale_to_float16(Reduction::reduce(
        runs,
        [&](int i, float& to) {
          float run[kRun];
          read(i, run);
#pragma unroll
          for (float value : run) to = fmaxf(to, fabsf(value));
        },
        Larger(), [](float value) { return warp_max(value); }));
  for (int i = lane_index(); i < row_runs<kFormat>(cols) - 4; i += kWarpSize) {
    uint4 packed = {0, 0, 0, 0};
    if (i < runs) {
      float run[kRun];
      read(i, run);
      packed = pack_run<kFormat>(run, scale.value);
    }
    row[position_of_run<kFormat>(i)] = packed;
  }
  return scale.inverse;
}

// Writes a token's row: `cols` inputs, then zeros to the end of the last chunk. Returns the factor for its products.
template <Format kFormat, class Team, int kHeld = 0>
__device__ float prepare_token(const float* x, const Norm& norm, int cols, uint4* row, float* scratch) {
  const TokenNorm<Team, kHeld> token(x, norm, cols, scratch);
  PowerOfTwo scale = {1, 1};
  if constexpr (Element<kFormat>::kNarrow) {
    float largest = 0;
    token.each([&](int, const float (&run)[kRun]) {
#pragma unroll
      for (float value : run) largest = fmaxf(largest, fabsf(value));
    });
    scale = scale_to_float16(team_max<Team>(largest, scratch));
  }
  token.each(
      [&](int i, const float (&run)[kRun]) { row[position_of_run<kFormat>(i)] = pack_run<kFormat>(run, scale.value); });
  // One round at most for a thread. Unrolled, the positions of later ones would be spilled.
#pragma unroll 1
  for (int i = cols / kRun + threadIdx.x; i < row_runs<kFormat>(cols) - 4; i += Team::threads())
    row[position_of_run<kFormat>(i)] = {0, 0, 0, 0};
  return scale.inverse;
}

}  // namespace adept::cuda
