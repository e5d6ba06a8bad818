// x Wᵀ for up to 16 tokens and W in tiles: the kernel of layernorm_qkv, linear_residual, lm_head and mlp's
// up-projection for matrices that a runtime has packed.
//
// Layout: one block of 9 warps a multiprocessor. One warp fills the ring with tile after tile, 16 kB a stage, from the
// start of the kernel on; 8 multiply (tiles.cuh), after they have normalised the inputs or copied those that
// prepare_inputs has left.
//
// Lower bound: as in linear.cuh; columns are padded to whole chunks. Limit: memory bandwidth. At one token the ring has
// 5 stages, so that a next kernel's ring fits beside it: 80 kB in flight, where 4.5 TB/s for 1 us need 34 kB a
// multiprocessor. Rounds: on 132 multiprocessors 12288 rows are 5.8 tiles a block, 4096 rows 1.9, 16384 rows 7.8.
#pragma once

#include "cuda/tiles.cuh"

namespace adept::cuda {

constexpr int kTileThreads = kTeamThreads + kWarpSize;

// `prepared`: the inputs of all tokens, if prepare_inputs has run; otherwise each block prepares its own copy.
template <Format kFormat, int kTokenTiles, bool kPrepared>
__global__ void __launch_bounds__(kTileThreads, kTokenTiles == 1 ? 2 : 1)
    multiply_matrix(const Linear linear, const PreparedInputs prepared, int stages) {
  __shared__ float scratch[kTeamWarps], unscale[kTokenTiles * kTokensOfTile];
  unsigned char* const memory = dynamic_shared<unsigned char>();
  const Ring ring(memory, stages, kStageBytes<kFormat>);
  if (threadIdx.x == 0) ring.init(kTeamWarps);
  __syncthreads();
  if (warp_index() == kTeamWarps) {
    RingWriter writer(ring);
    write_tiles<kFormat>(linear.w, writer);
    return writer.finish();
  }
  pdl_launch_dependents();
  pdl_wait();

  const int tokens = static_cast<int>(linear.tokens), stride = row_runs<kFormat>(linear.w.cols);
  uint4* const inputs = reinterpret_cast<uint4*>(memory + stages * (kStageBytes<kFormat> + Ring::kBarrierBytes));
  take_inputs<kFormat, Consumers, kPrepared, kHeldRuns>(linear, prepared, inputs, stride, unscale, scratch);
  Consumers::sync();
  RingReader reader(ring);
  multiply_tiles<kFormat, kTokenTiles>(linear, {inputs, unscale, reinterpret_cast<float*>(inputs + tokens * stride)},
                                       reader);
}

}  // namespace adept::cuda
