// Checks the tensors of a matrix for a GPU, and finds its format and the order of its weights by their shapes and
// dtypes.
#pragma once

#include "arguments.h"
#include "cuda/kernels.h"
#include "cuda/tile_layout.h"

namespace adept::cuda_ops {

inline void check_matrix_sizes(const char* name, int64_t rows, int64_t cols) {
  ADEPT_REQUIRE(cols > 0 && cols % cuda::kColsMultiple == 0, name, " has ", cols, " columns; expected a multiple of ",
                cuda::kColsMultiple, " on a GPU");
  ADEPT_REQUIRE(rows <= cuda::kMaxRows && cols <= cuda::kMaxCols, name, " has ", rows, " rows and ", cols,
                " columns; expected at most ", cuda::kMaxRows, " and ", cuda::kMaxCols, " on a GPU");
}

// Row by row; the number of scales shows the size of a group.
inline Matrix int4_matrix(const char* name, const Tensor& values, const Tensor& scales, int64_t rows, int64_t cols) {
  const bool by_32 = values.dim() == 2 && scales.dim() == 2 && values.size(1) * 2 == scales.size(1) * kGroupSize32;
  const int64_t group = by_32 ? kGroupSize32 : kGroupSize128, padded = round_up(cols, group);
  check_dtype(name, values, ScalarType::Byte);
  check_shape(name, values, {rows, padded / 2});
  check_shape(name, scales, {rows, padded / group});
  check_dtype(name, scales, ScalarType::Half);
  ADEPT_REQUIRE(scales.numel() <= kMaxSize, name, " has ", scales.numel(), " scales; expected at most ", kMaxSize);
  return {by_32 ? Format::kInt4G32 : Format::kInt4G128, values.const_data_ptr(),
          aligned(name, scales.const_data_ptr(), scales.element_size()), rows, cols};
}

// Row by row, in 8 bits without its scales.
inline Matrix rows_to_widen(const Tensor& w, const OptionalTensor& scales, int64_t cols) {
  const ScalarType dtype = w.scalar_type();
  if (dtype == ScalarType::Byte) {
    ADEPT_REQUIRE(scales.has_value(), "w has dtype Byte and no scales; expected those of its groups");
    return int4_matrix("w", w, *scales, w.size(0), cols);
  }
  const bool int8 = dtype == ScalarType::Char;
  ADEPT_REQUIRE(int8 || dtype == ScalarType::Float8_e4m3fn, "w has dtype ", torch::headeronly::toString(dtype),
                "; expected Byte, Char or Float8_e4m3fn");
  check_shape("w", w, {w.size(0), cols});
  return {int8 ? Format::kInt8 : Format::kFloat8, w.const_data_ptr(), nullptr, w.size(0), cols};
}

// The format of tiles or strips; their last dimension is that of a chunk or of a row of a strip.
inline std::optional<Format> format_of_parts(ScalarType dtype, int64_t bytes) {
  switch (dtype) {
    case ScalarType::Char: return Format::kInt8;
    case ScalarType::Float8_e4m3fn: return Format::kFloat8;
    case ScalarType::Half: return Format::kFloat16;
    case ScalarType::BFloat16: return Format::kBFloat16;
    case ScalarType::Byte: break;
    default: return std::nullopt;
  }
  constexpr Format k32 = Format::kInt4G32;
  return bytes == stored_chunk_bytes(k32) || bytes == stored_strip_row_bytes(k32) ? k32 : Format::kInt4G128;
}

// An operand of a product, in tiles or in strips. Scales of 4 bits are among the values.
inline Matrix matrix_in_tiles(const char* name, Layout layout, const Tensor& values, const OptionalTensor& scales,
                              int64_t rows, int64_t cols) {
  const int64_t size = values.element_size();
  const std::optional<Format> format = format_of_parts(values.scalar_type(), values.size(2) * size);
  ADEPT_REQUIRE(format, name, " has dtype ", torch::headeronly::toString(values.scalar_type()),
                "; expected Half, BFloat16, Char, Float8_e4m3fn or Byte");
  if (layout == Layout::kTiled)
    check_shape(name, values,
                {round_up(rows, kTileRows) / kTileRows, round_up(cols, chunk_cols(*format)) / chunk_cols(*format),
                 stored_chunk_bytes(*format) / size});
  else
    check_shape(
        name, values,
        {round_up(cols, strip_cols(*format)) / strip_cols(*format), rows, stored_strip_row_bytes(*format) / size});
  const bool has_scales = bits_of(*format) == 8;
  ADEPT_REQUIRE(scales.has_value() == has_scales, name,
                has_scales ? " has no scales; expected one for each output" : " has scales of its own; expected None");
  if (!has_scales) return {*format, values.const_data_ptr(), nullptr, rows, cols, true};
  check_shape(name, *scales, {layout == Layout::kTiled ? rows : cols});
  check_dtype(name, *scales, ScalarType::Float);
  return {*format, values.const_data_ptr(), data<float>(name, *scales), rows, cols, true};
}

// A matrix of `cols` columns: [rows, bytes], tiles or strips. Rows of tiles are padded to whole tiles.
inline cuda::Widen matrix_to_widen(const Tensor& w, const OptionalTensor& scales, int64_t cols) {
  ADEPT_REQUIRE(w.dim() == 2 || w.dim() == 3, "w has shape ", shape_of(w), "; expected [rows, columns], or tiles");
  for (int64_t i = 0; i < w.dim(); ++i) check_sizes("w", w.size(i), cols);
  check_matrix_sizes("w", w.size(0), cols);
  cuda::Widen widen = {};
  widen.cols = cols;
  widen.values = w.const_data_ptr();
  if (w.dim() == 2) {
    const Matrix matrix = rows_to_widen(w, scales, cols);
    widen.format = matrix.format;
    widen.scales = matrix.scales;
    widen.rows = matrix.rows;
    return widen;
  }
  const int64_t bytes = w.size(2) * int64_t(w.element_size());
  const std::optional<Format> format = format_of_parts(w.scalar_type(), bytes);
  const bool tiles = format && bytes == stored_chunk_bytes(*format);
  ADEPT_REQUIRE(tiles || (format && bytes == stored_strip_row_bytes(*format)), "w has shape ", shape_of(w),
                " and dtype ", torch::headeronly::toString(w.scalar_type()), "; expected tiles or strips");
  const int64_t width = tiles ? chunk_cols(*format) : strip_cols(*format), parts = round_up(cols, width) / width;
  if (tiles) check_shape("w", w, {w.size(0), parts, w.size(2)});
  if (!tiles) check_shape("w", w, {parts, w.size(1), w.size(2)});
  widen.format = *format;
  widen.order = tiles ? cuda::Order::kTiles : cuda::Order::kStrips;
  widen.rows = tiles ? w.size(0) * kTileRows : w.size(1);
  check_matrix_sizes("w", widen.rows, cols);
  return widen;
}

}  // namespace adept::cuda_ops
