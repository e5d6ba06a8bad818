// All layers of a decode step, for matrices in tiles.
#pragma once

#include <cuda_runtime_api.h>

#include "operands.h"

namespace adept::cuda {

constexpr int64_t kMaxLayers = 96;  // what a kernel takes as an argument

// The weights of one layer. Scales are of 8 bits, else null.
struct LayerPointers {
  const float* input_gamma;
  const float* input_beta;
  const void* w_qkv;
  const void* qkv_scales;
  const float* b_qkv;
  const float* q_gamma;  // null: no LayerNorm of q and k
  const float* q_beta;
  const float* k_gamma;
  const float* k_beta;
  const void* w_dense;
  const void* dense_scales;
  const float* b_dense;
  const float* mlp_gamma;
  const float* mlp_beta;
  const void* w_up;
  const void* up_scales;
  const float* b_up;
  const void* w_down;
  const void* down_scales;
  const float* b_down;
};

struct DecodeLayers {
  const float* x;  // [tokens, hidden], embedded
  int64_t tokens;
  int64_t hidden;
  int64_t intermediate;
  Format format;  // of all matrices
  float eps;
  const float* cos;  // as in RotaryAppend
  const float* sin;
  int64_t half;
  const int64_t* slots;
  const int64_t* positions;
  CacheLayer cache;  // of the first layer; the others follow
  int64_t longest;   // more than any position
  float scale;
  int64_t* neuron_counts;  // as in Mlp
  uint64_t* counters;      // [decode_counters], 0 before the first call
  float* out;              // [tokens, hidden]
  int layer_count;
  LayerPointers layers[kMaxLayers];
};

// One for the barrier of the grid, then one for each strip of the down-projection, then one for each head.
int64_t decode_counters(int64_t tokens, int64_t hidden, int64_t heads);

// Why one kernel cannot compute all layers, or null if it can.
const char* refuses_one_kernel(const DecodeLayers& op);

int64_t decode_layers_workspace_bytes(const DecodeLayers& op);
// By one kernel, or by four for each layer (more for three and more tokens); both give the same bits. Blocks wait for
// each other, so no other call may run on the device at the same time.
cudaError_t decode_layers(const DecodeLayers& op, bool one_kernel, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
