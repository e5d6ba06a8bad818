// What linear and mlp share.
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

__host__ __device__ constexpr int tiles_of(int64_t rows) {
  return static_cast<int>((rows + kTileRows - 1) / kTileRows);
}

// To 16 bytes, as loads of 16 bytes need.
inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace adept::cuda
