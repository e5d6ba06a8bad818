// The loops that stream weights against a few tokens' inputs: float rows, and quantised tiles of 16 rows.
//
// A float row is a dot product, its lanes summed at the end. A quantised tile holds four inputs of each of its 16
// rows in one vector, so that a lane is a row, nothing is summed across lanes, and an input is a broadcast.
// Tokens are processed in blocks that fill the registers; each further block reads the weights from the first-level
// cache again.
#pragma once

#include "inputs.h"

namespace adept::ADEPT_ISA {

// Sums must stay in registers, so every loop over them is unrolled by a pragma; without it GCC keeps them in memory.

// A float sum goes along its row in vectors of 16 columns, one after the other, for any number of tokens. With one
// token a row's sums wait for each other; the processor overlaps them with those of the next row.
#if defined(__AVX512F__)
constexpr int kFloatTokens = 6, kFloatRows = 4;  // 24 sums, 4 weights and an input in 32 registers
constexpr int kQuantizedTokens = 6, kTiles = 2;  // 24 sums, 2 weights and 2 inputs
#else
constexpr int kFloatTokens = 2, kFloatRows = 2;
constexpr int kQuantizedTokens = 2, kTiles = 1;
#endif

// With many tokens, rows and inputs are used a block of each at a time, which the second-level cache holds.
constexpr int64_t kRowBlockBytes = 256 * 1024, kInputBlockBytes = 384 * 1024;

// Calls block(begin, integral_constant<count>) for blocks of at most Max.
template <int Max, class Block>
inline void for_blocks(int64_t begin, int64_t end, const Block& block) {
  for (; end - begin >= Max; begin += Max) block(begin, std::integral_constant<int, Max>());
  if constexpr (Max > 1)
    if (begin < end) for_blocks<Max - 1>(begin, end, block);
}

// One row and one token, in one straight stream of weights.
template <class Weight>
inline float dot_row(const Weight* w, int64_t cols, const float* x) {
  constexpr int64_t kUnrolled = 4 * kLanes;
  F32x16 total = broadcast(0.0f);
  int64_t c = 0;
  for (; c + kUnrolled <= cols; c += kUnrolled) {
    for (int64_t line = 0; line < kUnrolled; line += kCacheLine / int64_t(sizeof(Weight)))
      prefetch_stream(w + c + line);
#pragma GCC unroll 16
    for (int64_t at = c; at < c + kUnrolled; at += kLanes) total = fma(load(w + at), load(x + at), total);
  }
  for (; c < cols; c += kLanes)
    total = fma(load_first(w + c, int(std::min<int64_t>(kLanes, cols - c))), load(x + c), total);
  return sum(total);
}

// sums[r][t] = row r · token t
template <int Rows, int Tokens, class Weight>
inline void dot_rows(const Weight* w, int64_t cols, const float* x, int64_t x_stride, float (&sums)[Rows][Tokens]) {
  F32x16 totals[Rows][Tokens];
#pragma GCC unroll 16
  for (auto& row : totals)
#pragma GCC unroll 16
    for (F32x16& total : row) total = broadcast(0.0f);
  const auto add_columns = [&](int64_t c, const auto& load_weights) {
    F32x16 weights[Rows];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      weights[r] = load_weights(w + r * cols + c);
      // Past the end of a row, the prefetch continues with the row that will replace it.
      const int64_t jump = c + kStreamAhead / int64_t(sizeof(Weight)) < cols ? 0 : (Rows - 1) * cols;
      prefetch_stream(w + r * cols + c, w + r * cols + c + jump);
    }
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
      const F32x16 input = load(x + t * x_stride + c);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) totals[r][t] = fma(weights[r], input, totals[r][t]);
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) add_columns(c, [](const Weight* from) { return load(from); });
  if (c < cols) add_columns(c, [&](const Weight* from) { return load_first(from, int(cols - c)); });
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) sums[r][t] = sum(totals[r][t]);
}

// Calls block(begin, end) for blocks of `size`.
template <class Block>
inline void for_ranges(int64_t begin, int64_t end, int64_t size, const Block& block) {
  for (; begin < end; begin += size) block(begin, std::min(end, begin + size));
}

// emit(token, row, sum) for rows [begin, end) and all tokens.
template <class Weight, class Emit>
void float_rows(const Weight* w, int64_t cols, int64_t begin, int64_t end, const FloatInputs& x, int64_t tokens,
                const Emit& emit) {
  if (tokens == 1) {
    for (int64_t row = begin; row < end; ++row) emit(0, row, dot_row(w + row * cols, cols, x.token(0)));
    return;
  }
  const auto blocks = [](int64_t bytes, int64_t of_one, int64_t multiple) {
    return std::max<int64_t>(1, bytes / (of_one * multiple)) * multiple;
  };
  const int64_t row_block = blocks(kRowBlockBytes, std::max<int64_t>(1, cols) * int64_t(sizeof(Weight)), kFloatRows);
  const int64_t token_block =
      blocks(kInputBlockBytes, std::max<int64_t>(1, x.stride) * int64_t(sizeof(float)), kFloatTokens);
  for_ranges(begin, end, row_block, [&](int64_t first_row, int64_t last_row) {
    for_ranges(0, tokens, token_block, [&](int64_t first_token, int64_t last_token) {
      for_blocks<kFloatRows>(first_row, last_row, [&](int64_t row, auto rows) {
        for_blocks<kFloatTokens>(first_token, last_token, [&](int64_t token, auto count) {
          constexpr int kRows = decltype(rows)::value, kTokens = decltype(count)::value;
          float sums[kRows][kTokens];
          dot_rows(w + row * cols, cols, x.token(token), x.stride, sums);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) emit(token + t, row + r, sums[r][t]);
        });
      });
    });
  });
}

// 8-bit tiles: W = scale[row] * Q.
class Int8Tiles {
 public:
  explicit Int8Tiles(const Matrix& w) : Int8Tiles(w.values, static_cast<const float*>(w.scales), w.cols) {}
  Int8Tiles(const void* values, const float* scales, int64_t cols)
      : values_(static_cast<const int8_t*>(values)), scales_(scales), steps_(round_up(cols, kTiledColumns) / 4) {}

  int64_t tile_bytes() const { return steps_ * kCacheLine; }

  // sums[i][t] = tile (first + i) · token t
  template <int Tiles, int Tokens>
  void dot(int64_t first, const FixedInputs& x, int64_t token, F32x16 (&sums)[Tiles][Tokens]) const {
    // With one token two sums would wait for each other, so odd steps get sums of their own.
    constexpr int kSums = Tiles * Tokens == 1 ? 2 : 1;
    I32x16 high[kSums][Tiles][Tokens], low[kSums][Tiles][Tokens];
#pragma GCC unroll 16
    for (int chain = 0; chain < kSums; ++chain)
#pragma GCC unroll 16
      for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t) high[chain][i][t] = low[chain][i][t] = zero_i32();
    const int8_t* w = values_ + first * tile_bytes();
    const int8_t *x_high = x.high(token), *x_low = x.low(token);
    for (int64_t step = 0; step < steps_; step += kSums) {
#pragma GCC unroll 16
      for (int chain = 0; chain < kSums; ++chain) {
        U8x64 weights[Tiles];
#pragma GCC unroll 16
        for (int i = 0; i < Tiles; ++i) {
          const int8_t* at = w + i * tile_bytes() + (step + chain) * kCacheLine;
          weights[i] = offset_by_128(load_bytes(at));
          prefetch_stream(at);
        }
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t) {
          const U8x64 input_high = broadcast4(x_high + t * x.stride + 4 * (step + chain));
          const U8x64 input_low = broadcast4(x_low + t * x.stride + 4 * (step + chain));
#pragma GCC unroll 16
          for (int i = 0; i < Tiles; ++i) {
            high[chain][i][t] = dot4(high[chain][i][t], weights[i], input_high);
            low[chain][i][t] = dot4(low[chain][i][t], weights[i], input_low);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) {
#pragma GCC unroll 16
        for (int chain = 1; chain < kSums; ++chain) {
          high[0][i][t] = add(high[0][i][t], high[chain][i][t]);
          low[0][i][t] = add(low[0][i][t], low[chain][i][t]);
        }
        const F32x16 upper = to_float(add(high[0][i][t], broadcast(-128 * x.sum_of_high(token + t))));
        const F32x16 lower = to_float(add(low[0][i][t], broadcast(-128 * x.sum_of_low(token + t))));
        const F32x16 whole = fma(upper, broadcast(256.0f), lower);
        const F32x16 scales = load(scales_ + (first + i) * kTileRows);
        sums[i][t] = mul(whole, mul(scales, broadcast(x.scale(token + t))));
      }
  }

 private:
  const int8_t* values_;
  const float* scales_;
  int64_t steps_;
};

// 4-bit tiles: W = scale[row, group] * (Q - 8), groups of 32 inputs.
class Int4Tiles {
 public:
  explicit Int4Tiles(const Matrix& w)
      : values_(static_cast<const uint8_t*>(w.values)),
        scales_(static_cast<const Half*>(w.scales)),
        groups_(round_up(w.cols, kTiledColumns) / kGroupSize32) {}

  int64_t tile_bytes() const { return groups_ * kGroupBytes; }

  template <int Tiles, int Tokens>
  void dot(int64_t first, const FixedInputs& x, int64_t token, F32x16 (&sums)[Tiles][Tokens]) const {
#pragma GCC unroll 16
    for (auto& tile : sums)
#pragma GCC unroll 16
      for (F32x16& value : tile) value = broadcast(0.0f);
    for (int64_t group = 0; group < groups_; ++group) {
      I32x16 high[Tiles][Tokens], low[Tiles][Tokens];
#pragma GCC unroll 16
      for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t) {
          high[i][t] = zero_i32();
          low[i][t] = broadcast(-8 * x.group_sums(token + t)[group]);
        }
#pragma GCC unroll 16
      for (int step = 0; step < kGroupSteps; ++step) dot_step(first, group, step, x, token, high, low);
#pragma GCC unroll 16
      for (int i = 0; i < Tiles; ++i) {
        const F32x16 scales = load(scales_ + ((first + i) * groups_ + group) * kTileRows);
#pragma GCC unroll 16
        for (int t = 0; t < Tokens; ++t)
          sums[i][t] = fma(to_float(add(shift_left_8(high[i][t]), low[i][t])), scales, sums[i][t]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 16
      for (int t = 0; t < Tokens; ++t) sums[i][t] = mul(sums[i][t], broadcast(x.scale(token + t)));
  }

 private:
  static constexpr int kGroupSteps = 4;  // of eight inputs: four in low nibbles, four in high ones
  static constexpr int64_t kGroupBytes = kGroupSteps * kCacheLine;

  template <int Tiles, int Tokens>
  void dot_step(int64_t first, int64_t group, int step, const FixedInputs& x, int64_t token,
                I32x16 (&high)[Tiles][Tokens], I32x16 (&low)[Tiles][Tokens]) const {
    U8x64 weights[Tiles][2];
#pragma GCC unroll 16
    for (int i = 0; i < Tiles; ++i) {
      const uint8_t* at = values_ + (first + i) * tile_bytes() + group * kGroupBytes + step * kCacheLine;
      const U8x64 bytes = load_bytes(at);
      weights[i][0] = low_nibbles(bytes);
      weights[i][1] = high_nibbles(bytes);
      prefetch_stream(at);
    }
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
      const int64_t at = group * kGroupSize32 + step * 8;
#pragma GCC unroll 16
      for (int nibble = 0; nibble < 2; ++nibble) {
        const U8x64 input_high = broadcast4(x.high(token + t) + at + 4 * nibble);
        const U8x64 input_low = broadcast4(x.low(token + t) + at + 4 * nibble);
#pragma GCC unroll 16
        for (int i = 0; i < Tiles; ++i) {
          high[i][t] = dot4_small(high[i][t], weights[i][nibble], input_high);
          low[i][t] = dot4_small(low[i][t], weights[i][nibble], input_low);
        }
      }
    }
  }

  const uint8_t* values_;
  const Half* scales_;
  int64_t groups_;
};

// emit(token, tile, sums of its 16 rows) for tiles [begin, end) and all tokens.
template <class Tiles, class Emit>
void quantized_tiles(const Tiles& tiles, int64_t begin, int64_t end, const FixedInputs& x, int64_t tokens,
                     const Emit& emit) {
  const auto dot = [&](int64_t tile, auto count, int64_t token, auto token_count) {
    constexpr int kCount = decltype(count)::value, kTokens = decltype(token_count)::value;
    F32x16 sums[kCount][kTokens];
    tiles.dot(tile, x, token, sums);
    for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) emit(token + t, tile + i, sums[i][t]);
  };
  if (tokens == 1) {  // one straight stream of weights
    for (int64_t tile = begin; tile < end; ++tile)
      dot(tile, std::integral_constant<int, 1>(), 0, std::integral_constant<int, 1>());
    return;
  }
  for_blocks<kTiles>(begin, end, [&](int64_t tile, auto count) {
    for_blocks<kQuantizedTokens>(0, tokens,
                                 [&](int64_t token, auto token_count) { dot(tile, count, token, token_count); });
  });
}

}  // namespace adept::ADEPT_ISA
