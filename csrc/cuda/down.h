// The down-projection of mlp, over the units that are not 0.
#pragma once

#include <cuda_runtime_api.h>

#include "operands.h"

namespace adept::cuda {

struct Down {
  const float* units;      // [tokens, intermediate]
  const uint32_t* active;  // a bit for each unit, 32 a word: whether it is not 0 for some token
  const float* largest;    // [tokens, tiles of units]
  int64_t tokens;
  Matrix w;           // [intermediate, hidden]
  const float* x;     // [tokens, hidden], to be added
  const float* bias;  // [hidden], to be added
  int64_t* counts;    // as of Mlp
  float* out;         // [tokens, hidden]
};

// Of the current device.
int64_t down_workspace_bytes(const Down& down);
cudaError_t down(const Down& down, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
