// x Wᵀ for up to 16 tokens on tensor cores: the kernel of layernorm_qkv, linear_residual, lm_head and mlp's
// up-projection.
//
// Layout: W is [out, in], row-major. A tile is 16 rows; a team of 8 warps takes tile after tile, and each of its warps
// every 8th chunk of the columns. In a step, lane 4 g + t loads 16 bytes of rows g and g + 8 of the tile, the t-th of 4
// neighbouring pieces, into the registers from which the tensor cores read them. Inputs have the same order of columns
// (normalize.cuh), so the product is right and no weight is moved between lanes.
//
// Lower bound at the 8B's shapes in 16 bits and 3.0 TB/s: layernorm_qkv 100.7 MB, 34 us; linear_residual 33.6 MB, 11
// us; up 134 MB, 45 us; lm_head 2.1 GB, 716 us; half in 8 bits, a quarter in 4. Limit: memory bandwidth. 16 warps a
// multiprocessor have 4 steps of 2 loads of 512 bytes in flight, 64 kB; 3.35 TB/s for 0.7 us need 18 kB and an H200's
// 4.8 TB/s 26 kB. 1 kB takes about 50 instructions of a warp in 16 bits (counted in the code for 9.0), 85 in 8 bits,
// 150 in 4 bits; a multiprocessor can issue 270 in that time on an H100, 200 on an H200. One and two tokens use this
// kernel too, although most of their tile of 8 tokens is empty: without tensor cores the same kilobyte takes about 90,
// 140 and 220 instructions, and more for two tokens. It also gives a token the same bits alone and in a batch.
//
// Rounds: 132 multiprocessors have two teams each. For them 12288 rows are 2.91 tiles, 4096 rows 0.97, 16384 rows 3.88
// and 262144 rows 62.06, so no team has over 4 percent more than the mean. The last loads of a tile overlap with the
// first of the team's next tile. One warp of the eight stores a tile's sums, a different one each round.
#pragma once

#include "cuda/multiply.cuh"

namespace adept::cuda {

// A block has one team for each tile of tokens: from 9 tokens on, the inputs leave shared memory for one block only.
__host__ __device__ constexpr int sums_of_block(int token_tiles) { return token_tiles * sums_of_team(token_tiles); }

// The tile of this thread's team in a round; past the last tile if the team has none.
template <int kTeams>
__device__ __forceinline__ int tile_of_round(int round) {
  const int block = static_cast<int>(blockIdx.x + round * gridDim.x);
  return block * kTeams + warp_index() / kTeamWarps;
}

// The weights of one warp, chunk after chunk; `fetch` loads from the current chunk.
template <Format kFormat, int kTeams>
class WeightStream {
 public:
  explicit __device__ WeightStream(const Matrix& w) : w_(w), rows_(w), chunk_(first_chunk()) { point(); }

  __device__ bool has_more() const {
    return chunk_ < chunks_of<kFormat>(w_.cols) && first_row() < static_cast<int>(w_.rows);
  }
  __device__ bool is_in(int round) const { return round_ == round && has_more(); }
  __device__ int chunk() const { return chunk_; }

  __device__ void go_on() {
    chunk_ += kTeamWarps;
    if (chunk_ < chunks_of<kFormat>(w_.cols)) return;
    chunk_ = first_chunk();
    ++round_;
    point();
  }

  __device__ void fetch(int step, WeightStep& to) const {
    const int col = chunk_ * kChunkCols<kFormat> + step * kStepCols<kFormat> + lane_index() % 4 * kPerLoad<kFormat>;
    const int second = min(row_ + 8, static_cast<int>(w_.rows) - 1);
    to.rows[0] = rows_.load(row_, col);
    to.rows[1] = rows_.load(second, col);
    if constexpr (kGroup<kFormat> != 0) {
      const int groups = rows_.stored_cols / kGroup<kFormat>;
      const uint16_t* scales = static_cast<const uint16_t*>(w_.scales) + min(col / kGroup<kFormat>, groups - 1);
      // Not used here: that would wait for the load. In groups of 128 even lanes have the first row's, odd the
      // second's.
      to.scales[0] = __ldg(scales + (kScalesEach<kFormat> || lane_index() % 2 == 0 ? row_ : second) * groups);
      if (kScalesEach<kFormat>) to.scales[1] = __ldg(scales + second * groups);
    }
  }

 private:
  static __device__ int first_chunk() { return warp_index() % kTeamWarps; }
  __device__ int first_row() const { return tile_of_round<kTeams>(round_) * kRowsOfTile; }

  // Rows past the end load the last row; their sums are not stored.
  __device__ void point() { row_ = min(first_row() + lane_index() / 4, static_cast<int>(w_.rows) - 1); }

  const Matrix& w_;
  const Rows<kFormat> rows_;
  int row_;
  int round_ = 0;
  int chunk_;
};

// The float16 in the low half of another lane's `bits`.
__device__ __forceinline__ float scale_of_lane(uint32_t bits, int lane) {
  return __half2float(bits_as<__half>(static_cast<uint16_t>(__shfl_sync(kWholeWarp, bits, lane))));
}

// `prepared`: the inputs of all tokens, if prepare_inputs has run; otherwise each block prepares its own copy.
template <Format kFormat, int kTokenTiles, bool kPrepared>
__global__ void __launch_bounds__(kTokenTiles* kTeamThreads, kTokenTiles == 1 ? 3 : 1)
    multiply_rows(const Linear linear, const PreparedInputs prepared) {
  const int team = warp_index() / kTeamWarps, warp = warp_index() % kTeamWarps;
  WeightStream<kFormat, kTokenTiles> stream(linear.w);
  WeightStep steps[kStepsInFlight];
  if (stream.has_more())
#pragma unroll
    for (int i = 0; i < kStepsInFlight; ++i) stream.fetch(i, steps[i]);
  pdl_launch_dependents();
  pdl_wait();

  __shared__ float scratch[kTokenTiles * kTeamWarps], unscale[kTokenTiles * kTokensOfTile];
  const int cols = static_cast<int>(linear.w.cols), tokens = static_cast<int>(linear.tokens);
  const int stride = row_runs<kFormat>(cols);
  uint4* const inputs = dynamic_shared<uint4>();
  float* const sums = reinterpret_cast<float*>(inputs + tokens * stride);
  take_inputs<kFormat, WholeBlock, kPrepared, 0>(linear, prepared, inputs, stride, unscale, scratch);
  __syncthreads();

  const uint4* const of_lane = inputs + lane_index() / 4 * stride + lane_index() % 4;
  const int tiles = tiles_of(linear.w.rows);
  for (int round = 0; tile_of_round<kTokenTiles>(round) - team < tiles; ++round) {
    float of_warp[kTokenTiles][4] = {};
    while (stream.is_in(round)) {
      const uint4* const of_chunk = of_lane + stream.chunk() * (kChunkCols<kFormat> / kRun);
      stream.go_on();
      const bool has_more = stream.has_more();
#pragma unroll
      for (int i = 0; i < kStepsInFlight; ++i) {
        const uint4* const of_step = of_chunk + i * (kStepCols<kFormat> / kRun);
        const auto scale_of = [&](int row) { return scale_of_lane(steps[i].scales[0], lane_index() / 4 * 4 + row); };
        add_step<kFormat, kTokenTiles>(steps[i], of_step, stride, tokens, scale_of, of_warp);
        if (has_more) stream.fetch(i, steps[i]);
      }
    }
    float* const of_team = sums + (round % 2 * kTokenTiles + team) * kTeamWarps * sums_of_warp(kTokenTiles);
    hand_sums(of_warp, tokens, of_team + warp * sums_of_warp(kTokenTiles));
    __syncthreads();
    // A different warp each round; the others continue.
    const int tile = tile_of_round<kTokenTiles>(round);
    if (warp == round % kTeamWarps && tile < tiles)
      finish_tile<kFormat>(linear, tile, of_team, sums_of_warp(kTokenTiles), unscale);
  }
}

}  // namespace adept::cuda
