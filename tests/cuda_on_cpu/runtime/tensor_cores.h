// mma.sync of 16-bit floats and ldmatrix, as the PTX ISA lays their fragments out over a warp.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

enum class Sixteen { kFloat16, kBFloat16 };

// m16n8k16: d += a · b.
void multiply_add(Sixteen format, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// ldmatrix of `count` matrices of 8 x 8: lane 8m + r names row r of matrix m, 16 bytes in shared memory.
void load_matrices(uint32_t* registers, int count, bool transposed, const void* row);

}  // namespace cuda_on_cpu
