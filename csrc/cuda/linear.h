// The product that linear and mlp's up-projection share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "operands.h"

namespace adept::cuda {

// Tokens' inputs, normalised and rounded; normalize.cuh describes them.
struct PreparedInputs {
  uint4* rows;
  float* unscale;  // [tokens], the factor for their products
};

// Marks that the up-projection makes for the down-projection; null pointers: none.
struct ActivationMarks {
  uint16_t* active;  // [tiles, rounded up to even], a bit for each neuron: whether it is active for some token
  float* largest;    // [tokens, tiles]
  bool joins;        // other tokens' bits are in `active` already
};

__host__ __device__ constexpr int tiles_of(int64_t rows) {
  return static_cast<int>((rows + kTileRows - 1) / kTileRows);
}

// To 16 bytes, as loads of 16 bytes need.
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

int64_t multiply_workspace_bytes(const Linear& linear);

// `linear` for up to 16 tokens. If their inputs do not fit in shared memory, several passes take some tokens each, and
// each reads the weights again.
cudaError_t multiply(const Linear& linear, const ActivationMarks& marks, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
