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
  // For w in strips: null, or a counter for each strip, 0 before and after; one kernel then also adds the shares.
  uint64_t* strip_counters = nullptr;
};

cudaError_t sparse_down_proj(const SparseDownProj& proj, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
