// Matrices in tiles: every block reads contiguous memory, in the order in which its warps multiply.
//
// A matrix for y = W x, [rows, cols], is [tiles, chunks, bytes of a chunk]. A tile is 16 rows, and a chunk of it 4 kB
// of values, 256 bytes of each row: 4 steps of two halves of 32 pieces of 16 bytes. Piece 4 g + t of half h of step s
// is from row 8 h + g of the tile, bytes 64 s + 16 t to 64 s + 16 t + 15 of the row's part. In 4 bits, the chunk's
// scales follow, float16: [step, g, h] in groups of 128, [step, g, t, h] in groups of 32. Rows are padded to whole
// tiles and columns to whole chunks, with zeros.
//
// A matrix for y = Wᵀ x, [rows, cols], is [strips, rows, bytes of a row]: a strip has 512 bytes of each row, and in 4
// bits their scales behind them. Columns are padded to whole strips.
#pragma once

#include <cstdint>

#include "operands.h"

namespace adept {

constexpr int kChunkBytes = 4096;    // of values
constexpr int kChunkRowBytes = 256;  // of each of the 16 rows
constexpr int kStripRowBytes = 512;  // of values

constexpr int bits_of(Format format) {
  return format == Format::kInt8 || format == Format::kFloat8        ? 8
         : format == Format::kInt4G32 || format == Format::kInt4G128 ? 4
         : format == Format::kFloat32                                ? 32
                                                                     : 16;
}

// Weights of a row that share a scale; 0 in other formats than those of 4 bits.
constexpr int group_of(Format format) {
  return static_cast<int>(format == Format::kInt4G32 ? kGroupSize32 : format == Format::kInt4G128 ? kGroupSize128 : 0);
}

// Columns of a chunk, and of a strip.
constexpr int chunk_cols(Format format) { return kChunkRowBytes * 8 / bits_of(format); }
constexpr int strip_cols(Format format) { return kStripRowBytes * 8 / bits_of(format); }

// With the scales.
constexpr int stored_chunk_bytes(Format format) {
  return kChunkBytes + (group_of(format) == 0 ? 0 : kTileRows * chunk_cols(format) / group_of(format) * 2);
}
constexpr int stored_strip_row_bytes(Format format) {
  return kStripRowBytes + (group_of(format) == 0 ? 0 : strip_cols(format) / group_of(format) * 2);
}

}  // namespace adept
