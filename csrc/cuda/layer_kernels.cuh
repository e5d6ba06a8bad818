// The kernels of decode_layers: attention, the MLP, and all layers of a step in one.
//
// attend_heads: a block takes one split of one head of one token (append_attention.cuh). Its lower bound and limit are
// those of decode_attention.cu, less two launches and the queries' way through memory.
//
// multiply_mlp: one block of 9 warps a multiprocessor, all of which run at once. One warp fills a ring with the tiles
// of the up-projection from the start of the kernel on, 8 multiply. A barrier of the grid follows, behind which all
// activations are known; then the blocks take units of the down-projection (strips.cuh), whose slots lie where the ring
// was. Lower bound: as in linear.cuh and sparse_down_proj.cuh. Limit: memory bandwidth, and about 2 us from the barrier
// to the first active row.
//
// decode_all: the same grid computes every layer. The ring never runs dry at the end of an operator: its warp goes
// from matrix to matrix while the others wait for the grid. In flight are 5 to 8 stages of 16 kB and, in the
// down-projection, 64 kB of rows. Lower bound: all matrices, active rows of the down-projection and cached keys and
// values, once. Limit: memory bandwidth, as long as the ring covers a barrier of the grid: 100 kB arrive in 3 us at 4.5
// TB/s. There are five barriers a layer.
#pragma once

#include "cuda/layer.cuh"

namespace adept::cuda {

constexpr int kLayerThreads = kTeamThreads + kWarpSize;

// Two blocks have 64 kB in flight; for three, the compiler spills a register on 8.6.
template <class Element, int kLanes>
__global__ void __launch_bounds__(kTeamThreads, 2)
    attend_heads(const AppendAttention op, const attention::Partials partials, int64_t splits) {
  auto& shared = *dynamic_shared<attention::AppendShared>();
  pdl_launch_dependents();
  pdl_wait();
  const attention::AppendUnit<Element, kLanes, Consumers> unit(op, partials, splits, shared);
  unit.attend(blockIdx.z, blockIdx.y, blockIdx.x);
}

// All heads' splits of a layer, of the block's share. Not inlined: no format of weights has its own. Of heads with up
// to 64 dimensions.
template <class Element>
__device__ __noinline__ void attend_layer(const DecodeLayers& op, const LayerBuffers& buffers, int index,
                                          unsigned char* work) {
  const AppendAttention attention = LayerOperands(op, buffers, index).attention();
  const int splits = static_cast<int>(attention::splits_of(op.longest)), heads = static_cast<int>(op.cache.heads);
  const attention::AppendUnit<Element, 8, Consumers> unit(attention, buffers.splits, splits,
                                                          *reinterpret_cast<attention::AppendShared*>(work));
  const int units = static_cast<int>(op.tokens) * splits * heads;
#pragma unroll 1
  for (int i = static_cast<int>(blockIdx.x); i < units; i += static_cast<int>(gridDim.x))
    unit.attend(i / heads / splits, i % heads, i / heads % splits);
}

// Where a kernel's parts of shared memory begin: the ring, the slots and the work.
struct LayerShared {
  int stages;
  int slots_at;  // in bytes
  int work_at;
  int bytes;
};

template <Format kFormat, int kTokens>
__global__ void __launch_bounds__(kLayerThreads, 1)
    multiply_mlp(const Linear up, const SparseDownProj down, float* partials, uint64_t* grid_counter, int part_neurons,
                 const LayerShared layout) {
  static_assert(kTokens <= kTokensOfTile);
  __shared__ float scratch[kTeamWarps], unscale[kTokensOfTile];
  __shared__ uint64_t seen;
  unsigned char* const memory = dynamic_shared<unsigned char>();
  const Ring ring(memory, layout.stages, kStageBytes<kFormat>);
  if (threadIdx.x == 0) ring.init(kTeamWarps);
  __syncthreads();
  if (warp_index() == kTeamWarps) {
    RingWriter writer(ring);
    write_tiles<kFormat>(up.w, writer);
    return writer.finish();
  }
  pdl_launch_dependents();
  pdl_wait();
  RingReader reader(ring);
  run_linear<kFormat>(up, memory + layout.work_at, scratch, unscale, reader);
  // The slots lie where the ring was, whose stages have all been read before the barrier.
  Consumers::sync();
  if (threadIdx.x == 0) {
    RowSlots<kFormat, kTokens>::init(memory + layout.slots_at);
    mbarrier_fence_init();
  }
  GridBarrier(grid_counter).sync<Consumers>();
  RowSlots<kFormat, kTokens> slots(memory + layout.slots_at);
  run_down<kFormat, kTokens>(down, part_neurons, partials, memory + layout.work_at, slots, &seen);
}

template <Format kFormat, int kTokens>
__global__ void __launch_bounds__(kLayerThreads, 1)
    decode_all(const __grid_constant__ DecodeLayers op, const __grid_constant__ LayerBuffers buffers, int part_neurons,
               const LayerShared layout) {
  static_assert(kTokens <= kTokensOfTile);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older devices never run it
  __shared__ float scratch[kTeamWarps], unscale[kTokensOfTile];
  __shared__ uint64_t seen;
  unsigned char* const memory = dynamic_shared<unsigned char>();
  unsigned char* const work = memory + layout.work_at;
  const Ring ring(memory, layout.stages, kStageBytes<kFormat>);
  if (threadIdx.x == 0) {
    RowSlots<kFormat, kTokens>::init(memory + layout.slots_at);
    ring.init(kTeamWarps);
  }
  __syncthreads();
  if (warp_index() == kTeamWarps) {
    RingWriter writer(ring);
#pragma unroll 1
    for (int i = 0; i < kProducts * op.layer_count; ++i)
      write_tiles<kFormat>(LayerOperands(op, buffers, i / kProducts).product(i % kProducts).w, writer);
    return writer.finish();
  }
  pdl_launch_dependents();
  pdl_wait();
  RingReader reader(ring);
  RowSlots<kFormat, kTokens> slots(memory + layout.slots_at);
  const GridBarrier grid(LayerCounters(op.counters, op.hidden).grid);
  // One loop over products, so that the code of a product is there once.
#pragma unroll 1
  for (int i = 0; i < kProducts * op.layer_count; ++i) {
    const LayerOperands layer(op, buffers, i / kProducts);
    const int product = i % kProducts;
    run_linear<kFormat>(layer.product(product), work, scratch, unscale, reader);
    grid.sync<Consumers>();
    if (product == kQkv) {
      if (op.cache.format == Format::kFloat16)
        attend_layer<__half>(op, buffers, i / kProducts, work);
      else
        attend_layer<__nv_bfloat16>(op, buffers, i / kProducts, work);
      grid.sync<Consumers>();
    }
    if (product == kUp) {
      run_down<kFormat, kTokens>(layer.down(), part_neurons, buffers.partials, work, slots, &seen);
      if (i + 1 < kProducts * op.layer_count) grid.sync<Consumers>();
    }
  }
#endif
}

}  // namespace adept::cuda
