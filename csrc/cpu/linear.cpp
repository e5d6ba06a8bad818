// linear: out = relu²?(LayerNorm?(x) Wᵀ + bias) + residual, for layernorm_qkv, linear_residual, lm_head and mlp's
// up-projection.
//
// Layout: W is [out, in], floats row-major or quantised in tiles of 16 rows (operands.h). Lower bound: W's bytes, read
// once. Limit: memory bandwidth for few tokens, so threads read long runs of rows in memory order, prefetched into the
// second-level cache a few lines ahead; for many tokens the byte products, so a tile of rows stays in the cache while
// all tokens use it.
#include <cmath>

#include "inputs.h"
#include "products.h"

namespace adept::ADEPT_ISA {
namespace {

constexpr int64_t kBytesPerTask = 32 * 1024;

// Adds bias and residual to a sum, applies relu², and stores it.
class Epilogue {
 public:
  explicit Epilogue(const Linear& linear) : linear_(linear) {}

  void row(int64_t token, int64_t row, float value) const {
    const int64_t at = token * linear_.w.rows + row;
    if (linear_.bias) value += linear_.bias[row];
    if (linear_.relu_squared) value = value < 0 ? 0 : value * value;  // a NaN stays one
    if (linear_.residual) value += linear_.residual[at];
    linear_.out[at] = value;
  }

  // The rows of a tile, 16 or fewer at the end.
  void tile(int64_t token, int64_t first_row, F32x16 value) const {
    const int lanes = int(std::min(kTileRows, linear_.w.rows - first_row));
    const int64_t at = token * linear_.w.rows + first_row;
    if (linear_.bias) value = add(value, load_first(linear_.bias + first_row, lanes));
    if (linear_.relu_squared) {
      value = zero_where_less(value, broadcast(0.0f), value);
      value = mul(value, value);
    }
    if (linear_.residual) value = add(value, load_first(linear_.residual + at, lanes));
    store_first(linear_.out + at, value, lanes);
  }

 private:
  const Linear& linear_;
};

template <class Weight>
void linear_float(const Threads& threads, const Linear& linear) {
  const Matrix& w = linear.w;
  const FloatInputs x(threads, linear.x, linear.tokens, w.cols, linear.norm);
  const Epilogue epilogue(linear);
  const int64_t row_bytes = std::max<int64_t>(1, w.cols * int64_t(sizeof(Weight)));
  const int64_t step = round_up(std::max<int64_t>(1, kBytesPerTask / row_bytes), kTileRows);
  const auto* weights = static_cast<const Weight*>(w.values);
  parallel_pieces(threads, w.rows, step, [&](int64_t begin, int64_t end) {
    float_rows(weights, w.cols, begin, end, x, linear.tokens,
               [&](int64_t token, int64_t row, float value) { epilogue.row(token, row, value); });
  });
}

template <class Tiles>
void linear_quantized(const Threads& threads, const Linear& linear, const Tiles& tiles) {
  const FixedInputs x(threads, linear.x, linear.tokens, linear.w.cols, linear.norm);
  const Epilogue epilogue(linear);
  const int64_t count = (linear.w.rows + kTileRows - 1) / kTileRows;
  const int64_t step = round_up(std::max<int64_t>(1, kBytesPerTask / std::max<int64_t>(1, tiles.tile_bytes())), 2);
  parallel_pieces(threads, count, step, [&](int64_t begin, int64_t end) {
    quantized_tiles(tiles, begin, end, x, linear.tokens,
                    [&](int64_t token, int64_t tile, F32x16 value) { epilogue.tile(token, tile * kTileRows, value); });
  });
}

}  // namespace

void linear(const Threads& threads, const Linear& linear) {
  const Matrix& w = linear.w;
  switch (w.format) {
    case Format::kFloat32: return linear_float<float>(threads, linear);
    case Format::kFloat16: return linear_float<Half>(threads, linear);
    case Format::kBFloat16: return linear_float<BFloat16>(threads, linear);
    case Format::kInt8: return linear_quantized(threads, linear, Int8Tiles(w));
    case Format::kInt4G32: return linear_quantized(threads, linear, Int4Tiles(w));
    default: return;  // a GPU's, which no tensor of a CPU has
  }
}

}  // namespace adept::ADEPT_ISA
