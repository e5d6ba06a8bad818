// The down-projection of mlp, over the active neurons only.
#pragma once

#include <cuda_runtime_api.h>

#include "operands.h"

namespace adept::cuda {

struct SparseDownProj {
  const float* activations;  // [tokens, intermediate]
  int64_t tokens;
  Matrix w;              // [intermediate, hidden]
  const float* x;        // [tokens, hidden], to be added
  const float* bias;     // [hidden], to be added
  int64_t* counts;       // as in Mlp
  const int64_t* slots;  // as in Mlp
  float* out;            // [tokens, hidden]
};

cudaError_t sparse_down_proj(const SparseDownProj& proj, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
