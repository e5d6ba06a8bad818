// The down-projection of mlp, over the active neurons only.
#pragma once

#include <cuda_runtime_api.h>

#include "operands.h"

namespace adept::cuda {

struct SparseDownProj {
  const float* activations;  // [tokens, intermediate]
  const uint32_t* active;    // a bit for each neuron, 32 a word: whether it is active for some token
  const float* largest;      // [tokens, tiles of neurons], the largest activation
  int64_t tokens;
  Matrix w;           // [intermediate, hidden]
  const float* x;     // [tokens, hidden], to be added
  const float* bias;  // [hidden], to be added
  int64_t* counts;    // as in Mlp
  float* out;         // [tokens, hidden]
};

// For the current device.
int64_t sparse_down_proj_workspace_bytes(const SparseDownProj& proj);
cudaError_t sparse_down_proj(const SparseDownProj& proj, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
