// x Wᵀ for W in tiles (tile_layout.h): what fills the ring with a matrix, and what multiplies its stages.
//
// A stage is 4 chunks of a tile, 16 kB, contiguous in memory. Chunk c of a tile is for warp c mod 8, so the warps 0 to
// 3 read the even stages of a tile and 4 to 7 the odd ones, and a token has the bits that the kernel of row-major
// matrices gives it.
#pragma once

#include "cuda/multiply.cuh"
#include "cuda/ring.cuh"
#include "cuda/tile_layout.h"

namespace adept::cuda {

constexpr int kStageChunks = 4;

template <Format kFormat>
constexpr int kStoredChunkBytes = stored_chunk_bytes(kFormat);
template <Format kFormat>
constexpr int kStageBytes = kStageChunks * kStoredChunkBytes<kFormat>;
template <Format kFormat>
constexpr bool kIsChunkOfTile = kChunkCols<kFormat> == chunk_cols(kFormat);

__host__ __device__ constexpr int stages_of_tile(int chunks) { return (chunks + kStageChunks - 1) / kStageChunks; }

// Fills the ring with the block's tiles.
template <Format kFormat>
__device__ __forceinline__ void write_tiles(const Matrix& w, RingWriter& ring) {
  constexpr int kBytes = kStoredChunkBytes<kFormat>;
  const int chunks = chunks_of<kFormat>(w.cols), tiles = tiles_of(w.rows);
  const auto* values = static_cast<const unsigned char*>(w.values);
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    const unsigned char* const from = values + int64_t{tile} * chunks * kBytes;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk += kStageChunks)
      ring.write(from + chunk * kBytes, static_cast<uint32_t>(min(kStageChunks, chunks - chunk) * kBytes));
  }
}

// A lane's weights of a step of a chunk in shared memory.
template <Format kFormat>
__device__ __forceinline__ WeightStep step_of(const unsigned char* chunk, int step) {
  const uint4* const values = reinterpret_cast<const uint4*>(chunk) + step * 2 * kWarpSize + lane_index();
  WeightStep to;
  to.rows[0] = values[0];
  to.rows[1] = values[kWarpSize];
  if constexpr (kGroup<kFormat> != 0) {
    const int lane = kScalesEach<kFormat> ? lane_index() : lane_index() / 4;
    constexpr int kLanes = kScalesEach<kFormat> ? kWarpSize : kWarpSize / 4;
    const uint32_t both = reinterpret_cast<const uint32_t*>(chunk + kChunkBytes)[step * kLanes + lane];
    to.scales[0] = both & 0xffff;
    to.scales[1] = both >> 16;
  }
  return to;
}

template <Format kFormat, int kTokenTiles>
__device__ __forceinline__ void add_chunk(const unsigned char* chunk, const uint4* inputs, int stride, int tokens,
                                          float (&sums)[kTokenTiles][4]) {
#pragma unroll
  for (int i = 0; i < kStepsInFlight; ++i) {
    const WeightStep step = step_of<kFormat>(chunk, i);
    const auto scale_of = [&](int row) {
      return __half2float(bits_as<__half>(static_cast<uint16_t>(step.scales[row])));
    };
    add_step<kFormat, kTokenTiles>(step, inputs + i * (kStepCols<kFormat> / kRun), stride, tokens, scale_of, sums);
  }
}

// The inputs of a product, and the team's sums, in shared memory.
struct InputsAndSums {
  const uint4* inputs;   // [tokens, stride]
  const float* unscale;  // [tokens]
  float* sums;           // [sums_of_team]
};

// Multiplies the block's tiles as they come, and stores the results. By the consumers, 8 warps.
template <Format kFormat, int kTokenTiles>
__device__ __forceinline__ void multiply_tiles(const Linear& linear, const InputsAndSums& product, RingReader& ring) {
  static_assert(kIsChunkOfTile<kFormat>);
  constexpr int kBytes = kStoredChunkBytes<kFormat>, kSums = sums_of_warp(kTokenTiles);
  const int tokens = static_cast<int>(linear.tokens), stride = row_runs<kFormat>(linear.w.cols);
  const int chunks = chunks_of<kFormat>(linear.w.cols), tiles = tiles_of(linear.w.rows), warp = warp_index();
  const uint4* const of_lane = product.inputs + lane_index() / 4 * stride + lane_index() % 4;
  int round = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x), ++round) {
    float of_warp[kTokenTiles][4] = {};
    for (int stage = 0; stage < stages_of_tile(chunks); ++stage) {
      const unsigned char* const from = ring.wait();
      const int chunk = stage * kStageChunks + warp % kStageChunks;
      if (stage % 2 == warp / kStageChunks && chunk < chunks)
        add_chunk<kFormat, kTokenTiles>(from + warp % kStageChunks * kBytes,
                                        of_lane + chunk * (kChunkCols<kFormat> / kRun), stride, tokens, of_warp);
      ring.leave();
    }
    float* const of_team = product.sums + round % 2 * kTeamWarps * kSums;
    hand_sums(of_warp, tokens, of_team + warp * kSums);
    Consumers::sync();
    // A different warp each round; the others continue.
    if (warp == round % kTeamWarps) finish_tile<kFormat>(linear, tile, of_team, kSums, product.unscale);
  }
}

}  // namespace adept::cuda
