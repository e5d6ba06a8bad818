// Products of one tile of W, 16 rows, with the inputs of up to 16 tokens on tensor cores: what a warp does with its
// weights, and how a team of 8 warps adds its sums.
//
// A team's warps take the chunks of a tile's columns in turn: warp w has chunks w, w + 8, ... In a step of a chunk,
// lane 4 g + t has 16 bytes of rows g and g + 8 of the tile, the t-th of 4 neighbouring pieces, in the registers from
// which the tensor cores read them. Inputs have the same order of columns (normalize.cuh), so the product is right and
// no weight is moved between lanes. A token's bits depend neither on the other tokens nor on where weights are read.
#pragma once

#include "cuda/linear.h"
#include "cuda/normalize.cuh"

namespace adept::cuda {

constexpr int kRowsOfTile = kTileRows;
constexpr int kTeamWarps = 8;
constexpr int kTeamThreads = kTeamWarps * kWarpSize;
using Consumers = FirstThreads<kTeamThreads>;  // of a block with a warp that fills a ring
constexpr int kTokensOfTile = 8;               // the tokens of one tensor core product
// The stride between two tokens' sums, in floats: padded so that the tokens of 4 lanes are in different banks.
constexpr int kSumsStride = kRowsOfTile + 4;

__host__ __device__ constexpr int sums_of_warp(int token_tiles) { return token_tiles * kTokensOfTile * kSumsStride; }
// Of two tiles: one half is written while the other may still be read, so one barrier a tile is enough.
__host__ __device__ constexpr int sums_of_team(int token_tiles) { return 2 * kTeamWarps * sums_of_warp(token_tiles); }

constexpr int kHeldRuns = 2;  // of a token in a thread's registers beside a ring: up to 4096 inputs are read once

// Puts the inputs of all tokens, [tokens, stride], and their factors into shared memory: those that prepare_inputs has
// left, or prepared here. `scratch`: a float for each warp. The team meets before it reads them.
template <Format kFormat, class Team, bool kPrepared, int kHeld>
__device__ __forceinline__ void take_inputs(const Linear& linear, const PreparedInputs& prepared, uint4* inputs,
                                            int stride, float* unscale, float* scratch) {
  const int cols = static_cast<int>(linear.w.cols), tokens = static_cast<int>(linear.tokens);
  if constexpr (kPrepared) {
    for (int i = threadIdx.x; i < tokens * stride; i += Team::threads()) copy_async(inputs + i, prepared.rows + i);
    if (threadIdx.x < tokens) unscale[threadIdx.x] = prepared.unscale[threadIdx.x];
    end_copies();
    wait_for_copies<0>();
  } else {
    for (int token = 0; token < tokens; ++token) {
      const float* const x = linear.x + token * cols;
      const float inverse = prepare_token<kFormat, Team, kHeld>(x, linear.norm, cols, inputs + token * stride, scratch);
      if (threadIdx.x == 0) unscale[token] = inverse;
    }
  }
}

// A lane's weights in a step, from rows g and g + 8, and in 4 bits the float16 scales of their groups.
struct WeightStep {
  uint4 rows[2];
  uint32_t scales[2];
};

// Whether a step has weights of several groups, so that each weight is multiplied by its scale; otherwise the sum is.
template <Format kFormat>
constexpr bool kScalesEach = kGroup<kFormat> == 32;

// The i-th pair of weights of a row of the step.
template <Format kFormat>
__device__ __forceinline__ uint32_t pair_of(const WeightStep& step, int row, int i) {
  const uint32_t pair = Weights<kFormat>::along(step.rows[row], i);
  if constexpr (!kScalesEach<kFormat>) return pair;
  return scale_pair(pair, step.scales[row] * 0x10001);
}

// sums += weights of two rows · inputs. `inputs`: this lane's for the step, of a token of the first tile.
template <Format kFormat, int kTokenTiles>
__device__ __forceinline__ void multiply_step(const WeightStep& step, const uint4* inputs, int stride, int tokens,
                                              float (&sums)[kTokenTiles][4]) {
#pragma unroll
  for (int j = 0; j < kPerLoad<kFormat> / kRun; ++j) {
    uint4 x[kTokenTiles];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      x[n] = {0, 0, 0, 0};
      if (n * kTokensOfTile + lane_index() / 4 < tokens) x[n] = inputs[n * kTokensOfTile * stride + j * 4];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = 4 * j + 2 * half;
      const uint32_t a[4] = {pair_of<kFormat>(step, 0, pair), pair_of<kFormat>(step, 1, pair),
                             pair_of<kFormat>(step, 0, pair + 1), pair_of<kFormat>(step, 1, pair + 1)};
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        const uint32_t b[2] = {word_of(x[n], 2 * half), word_of(x[n], 2 * half + 1)};
        Element<kFormat>::multiply_add(sums[n], a, b);
      }
    }
  }
}

// multiply_step, in groups of 128 times the scale of the step's group of weights: scale_of(0) and scale_of(1).
template <Format kFormat, int kTokenTiles, class ScaleOf>
__device__ __forceinline__ void add_step(const WeightStep& step, const uint4* inputs, int stride, int tokens,
                                         ScaleOf scale_of, float (&sums)[kTokenTiles][4]) {
  if constexpr (kGroup<kFormat> != 0 && !kScalesEach<kFormat>) {
    static_assert(kStepCols<kFormat> == kGroup<kFormat>);
    float of_group[kTokenTiles][4] = {};
    multiply_step<kFormat, kTokenTiles>(step, inputs, stride, tokens, of_group);
    const float first = scale_of(0), second = scale_of(1);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] += of_group[n][i] * (i < 2 ? first : second);
  } else {
    multiply_step<kFormat, kTokenTiles>(step, inputs, stride, tokens, sums);
  }
}

// Hands a warp's sums of a tile to the team. `to`: the warp's, in shared memory.
template <int kTokenTiles>
__device__ __forceinline__ void hand_sums(const float (&sums)[kTokenTiles][4], int tokens, float* to) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = n * kTokensOfTile + lane_index() % 4 * 2 + i % 2;
      if (token < tokens) to[token * kSumsStride + lane_index() / 4 + i / 2 * 8] = sums[n][i];
    }
}

// One warp adds the 8 warps' sums of a tile and stores the results: lanes are 16 rows of two tokens.
template <Format kFormat>
__device__ __forceinline__ void finish_tile(const Linear& linear, int tile, const float* sums, int sums_of_warp,
                                            const float* unscale) {
  const int tokens = static_cast<int>(linear.tokens), in_tile = lane_index() % kRowsOfTile;
  const int rows = static_cast<int>(linear.w.rows), row = tile * kRowsOfTile + in_tile;
  for (int token = lane_index() / kRowsOfTile; token < tokens; token += 2) {
    if (row >= rows) break;
    float value = 0;
#pragma unroll
    for (int warp = 0; warp < kTeamWarps; ++warp) value += sums[warp * sums_of_warp + token * kSumsStride + in_tile];
    value *= unscale[token];
    if constexpr (Weights<kFormat>::kBits == 8) value *= __ldg(static_cast<const float*>(linear.w.scales) + row);
    if (linear.bias != nullptr) value += __ldg(linear.bias + row);
    if (linear.relu_squared) value = value < 0 ? 0 : value * value;  // a NaN stays one
    const int64_t at = int64_t{token} * rows + row;
    if (linear.residual != nullptr) value += linear.residual[at];
    linear.out[at] = value;
  }
}

}  // namespace adept::cuda
