// Matrices in the order of cuda/tile_layout.h.
#pragma once

#include "cuda/tile_layout.h"
#include "device.h"

namespace adept::bench {

// Copies of matrices row by row, in 4 bits with their scales. A row has a multiple of 16 bytes.
DeviceMemory in_tiles_of_rows(const Matrix& matrix);
DeviceMemory in_strips(const Matrix& matrix);

}  // namespace adept::bench
