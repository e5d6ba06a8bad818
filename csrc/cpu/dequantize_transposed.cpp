// dequantize_transposed: a quantised down-projection as floats, for prompts long enough for a float GEMM.
//
// Layout: 64 bytes of a row hold 64 columns (int8) or 128 (int4), interleaved as adept_fast/quantization packs them:
// byte 16L + 4i + b is column 16i + 4L + b, so four bytes from each quarter make 16 neighbouring columns. Lower bound:
// the bytes of the matrix read and of the floats written. Limit: instructions.
#include "inputs.h"

namespace adept::ADEPT_ISA {
namespace {

// Columns 16i to 16i + 15 of a block of 64 bytes.
inline I32x16 sixteen_columns(const uint8_t* block, int i) {
  uint8_t bytes[kLanes];
  for (int quarter = 0; quarter < 4; ++quarter) std::memcpy(bytes + 4 * quarter, block + 16 * quarter + 4 * i, 4);
  return load_int8(bytes);
}

inline F32x16 int8_columns(const Matrix& w, int64_t row, int64_t column, int lanes) {
  const int64_t stride = round_up(w.cols, kTransposedColumns);
  const auto* block = static_cast<const uint8_t*>(w.values) + row * stride + column / kCacheLine * kCacheLine;
  const F32x16 values = to_float(sixteen_columns(block, int(column % kCacheLine / kLanes)));
  return mul(values, load_first(static_cast<const float*>(w.scales) + column, lanes));
}

inline F32x16 int4_columns(const Matrix& w, int64_t row, int64_t column) {
  const int64_t stride = round_up(w.cols, kTransposedColumns);
  const int64_t in_block = column % kTransposedColumns;
  const auto* block = static_cast<const uint8_t*>(w.values) + row * stride / 2 + (column - in_block) / 2;
  const auto* scale = static_cast<const Half*>(w.scales) + row * (stride / kGroupSize32) + column / kGroupSize32;
  const U8x64 bytes = load_bytes(block);
  uint8_t nibbles[kCacheLine];
  const U8x64 chosen = in_block < kCacheLine ? low_nibbles(bytes) : high_nibbles(bytes);
  std::memcpy(nibbles, &chosen, sizeof nibbles);
  const I32x16 values = sixteen_columns(nibbles, int(in_block % kCacheLine / kLanes));
  return mul(to_float(add(values, broadcast(-8))), broadcast(sum(load_first(scale, 1))));
}

template <class Element>
void dequantize(const Threads& threads, const Matrix& w, Element* out) {
  constexpr int64_t kRowsPerTask = 16;
  parallel_pieces(threads, w.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for_columns(w.cols, [&](int64_t c, int lanes) {
        const F32x16 values = w.format == Format::kInt8 ? int8_columns(w, row, c, lanes) : int4_columns(w, row, c);
        store_first(out + row * w.cols + c, values, lanes);
      });
  });
}

}  // namespace

void dequantize_transposed(const Threads& threads, const Matrix& w, Format to, void* out) {
  if (to == Format::kBFloat16)
    dequantize(threads, w, static_cast<BFloat16*>(out));
  else
    dequantize(threads, w, static_cast<float*>(out));
}

}  // namespace adept::ADEPT_ISA
