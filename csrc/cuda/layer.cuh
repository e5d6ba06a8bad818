// One layer's operators as the kernels of decode_layers call them: their operands, and what a team of 8 warps does.
#pragma once

#include "cuda/append_attention.cuh"
#include "cuda/decode_layers.h"
#include "cuda/strips.cuh"
#include "cuda/tiles.cuh"

namespace adept::cuda {

// Memory of a step between its operators.
struct LayerBuffers {
  float* qkv;          // [tokens, 3 * hidden]
  float* attended;     // [tokens, hidden]
  float* y;            // [tokens, hidden], after attention
  float* activations;  // [tokens, intermediate]
  float* partials;     // of the down-projection
  attention::Partials splits;
};

// Counters of decode_layers.
struct LayerCounters {
  uint64_t* grid;
  uint64_t* strips;
  uint64_t* heads;

  static constexpr int kMinStripCols = 256;
  static __host__ __device__ constexpr int64_t strips_of(int64_t hidden) {
    return (hidden + kMinStripCols - 1) / kMinStripCols;
  }

  __host__ __device__ LayerCounters(uint64_t* counters, int64_t hidden)
      : grid(counters), strips(counters + 1), heads(strips + strips_of(hidden)) {}
};

// The products of a layer with matrices in tiles, in order.
constexpr int kQkv = 0, kDense = 1, kUp = 2, kProducts = 3;

// The operands of layer `index`, whose input is `x`.
class LayerOperands {
 public:
  __host__ __device__ LayerOperands(const DecodeLayers& op, const LayerBuffers& buffers, int index)
      : op_(op), at_(op.layers[index]), buffers_(buffers), index_(index), x_(index == 0 ? op.x : op.out) {}

  __host__ __device__ __forceinline__ Linear product(int which) const {
    if (which == kQkv)
      return {x_,
              op_.tokens,
              norm(at_.input_gamma, at_.input_beta),
              matrix(at_.w_qkv, at_.qkv_scales, 3 * op_.hidden),
              at_.b_qkv,
              nullptr,
              false,
              buffers_.qkv};
    if (which == kDense)
      return {buffers_.attended, op_.tokens, {},    matrix(at_.w_dense, at_.dense_scales, op_.hidden),
              at_.b_dense,       x_,         false, buffers_.y};
    return {buffers_.y,
            op_.tokens,
            norm(at_.mlp_gamma, at_.mlp_beta),
            matrix(at_.w_up, at_.up_scales, op_.intermediate),
            at_.b_up,
            nullptr,
            true,
            buffers_.activations};
  }

  __host__ __device__ AppendAttention attention() const {
    CacheLayer cache = op_.cache;
    const int64_t of_layer = 2 * cache.slots * cache.heads * cache.capacity * cache.head_dim;
    const int64_t size = cache.format == Format::kFloat32 ? 4 : 2;
    cache.data = static_cast<unsigned char*>(cache.data) + index_ * of_layer * size;
    const RotaryAppend append = {buffers_.qkv,
                                 op_.tokens,
                                 {at_.q_gamma, at_.q_beta, op_.eps},
                                 {at_.k_gamma, at_.k_beta, op_.eps},
                                 op_.cos,
                                 op_.sin,
                                 op_.half,
                                 op_.slots,
                                 op_.positions,
                                 cache,
                                 nullptr};
    const DecodeAttention attention = {nullptr, op_.tokens,  cache,     op_.slots,
                                       nullptr, op_.longest, op_.scale, buffers_.attended};
    return {append, attention, LayerCounters(op_.counters, op_.hidden).heads};
  }

  __host__ __device__ SparseDownProj down() const {
    return {buffers_.activations,
            op_.tokens,
            matrix(at_.w_down, at_.down_scales, op_.intermediate),
            buffers_.y,
            at_.b_down,
            op_.neuron_counts,
            op_.neuron_counts == nullptr ? nullptr : op_.slots,
            op_.out,
            LayerCounters(op_.counters, op_.hidden).strips};
  }

 private:
  __host__ __device__ Norm norm(const float* gamma, const float* beta) const { return {gamma, beta, op_.eps}; }

  __host__ __device__ Matrix matrix(const void* values, const void* scales, int64_t rows) const {
    return {op_.format, values, scales, rows, op_.hidden, true};
  }

  const DecodeLayers& op_;
  const LayerPointers& at_;
  const LayerBuffers& buffers_;
  int index_;
  const float* x_;
};

// Shared memory beside rings and slots, of which each operator has all.
template <Format kFormat>
struct WorkBytes {
  static __host__ __device__ int product(int64_t tokens, int64_t cols) {
    return static_cast<int>(tokens) * row_runs<kFormat>(cols) * 16 + sums_of_team(1) * 4;
  }
  static __host__ __device__ int attention(int64_t tokens, int64_t head_dim) {
    return static_cast<int>(sizeof(attention::AppendShared) + tokens * 2 * head_dim * 2);
  }
};

// Prepares the inputs of a product of up to 8 tokens in `work` and multiplies the block's tiles. `scratch`:
// [kTeamWarps].
template <Format kFormat>
__device__ __forceinline__ void run_linear(const Linear& linear, unsigned char* work, float* scratch, float* unscale,
                                           RingReader& ring) {
  constexpr int kTokensOfTeam = 2;  // up to which the team prepares token by token; of more, each warp prepares some
  const int cols = static_cast<int>(linear.w.cols), tokens = static_cast<int>(linear.tokens);
  const int stride = row_runs<kFormat>(cols);
  uint4* const inputs = reinterpret_cast<uint4*>(work);
  if (tokens <= kTokensOfTeam)
    take_inputs<kFormat, Consumers, false, kHeldRuns>(linear, {}, inputs, stride, unscale, scratch);
  for (int token = warp_index(); tokens > kTokensOfTeam && token < tokens; token += kTeamWarps) {
    const float* const x = linear.x + int64_t{token} * cols;
    const float inverse = prepare_token_by_warp<kFormat, Consumers>(x, linear.norm, cols, inputs + token * stride);
    if (lane_index() == 0) unscale[token] = inverse;
  }
  Consumers::sync();
  multiply_tiles<kFormat, 1>(linear, {inputs, unscale, reinterpret_cast<float*>(inputs + tokens * stride)}, ring);
}

}  // namespace adept::cuda
