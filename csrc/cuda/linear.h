// The product that linear and mlp's up-projection share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "operands.h"

namespace adept::cuda {

// Tokens' inputs, normalised and rounded, as normalize.cuh says.
struct PreparedInputs {
  uint4* rows;
  float* unscale;  // [tokens], what their products are to be multiplied by
};

// What is noted of units as they are computed, for the down-projection; null pointers for nothing.
struct ActivationMarks {
  uint16_t* active;  // [tiles, rounded up to even], a bit for each unit: whether it is not 0 for some token
  float* largest;    // [tokens, tiles]
  bool joins;        // other tokens' bits are there already
};

__host__ __device__ constexpr int tiles_of(int64_t rows) {
  return static_cast<int>((rows + kTileRows - 1) / kTileRows);
}

// To 16 bytes, as wide loads need.
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

int64_t multiply_workspace_bytes(const Linear& linear);

// `linear`, for the format of its weights and any number of tokens up to 16; more tokens than fit in shared memory
// go one part after another, and read the weights again.
cudaError_t multiply(const Linear& linear, const ActivationMarks& marks, void* workspace, cudaStream_t stream);

}  // namespace adept::cuda
