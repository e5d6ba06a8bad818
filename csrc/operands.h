// What an operator works on, on every device: plain pointers and sizes, no torch.
#pragma once

#include <cstdint>

namespace adept {

enum class Format : int32_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt8,     // for a CPU
  kInt4,     // in groups of 32, for a CPU
  kFloat8,   // e4m3, for a GPU
  kInt4Wide  // in groups of 128, for a GPU
};

inline bool is_quantized(Format format) { return format >= Format::kInt8; }

// A weight matrix. Floats are row-major [rows, cols]. Quantised matrices are packed as
// adept_fast/quantization/quantize.py says: for a CPU in tiles of 16 rows ("rows" layout, for y = W x) or row by row
// ("units" layout, for y = u Wt), for a GPU row by row in both.
struct Matrix {
  Format format;
  const void* values;
  const void* scales;  // float32 (8 bits), float16 (4 bits), or null
  int64_t rows;
  int64_t cols;
};

constexpr int64_t kTileRows = 16;       // rows in a tile of the "rows" layout
constexpr int64_t kRowsPadding = 64;    // the "rows" layout's columns are a multiple of this
constexpr int64_t kUnitsPadding = 128;  // the "units" layout's columns are a multiple of this
constexpr int64_t kGroup = 32;          // weights of kInt4 that share a scale
constexpr int64_t kWideGroup = 128;     // weights of kInt4Wide that do; its columns are a multiple of this
// Sums of products of bytes stay within 32 bits up to here.
constexpr int64_t kMaxQuantizedInputs = 65536;

struct Norm {
  const float* gamma;  // null: no LayerNorm
  const float* beta;
  float eps;
};

// out = relu²?(LayerNorm?(x) Wᵀ + bias) + residual
struct Linear {
  const float* x;  // [tokens, w.cols]
  int64_t tokens;
  Norm norm;
  Matrix w;               // "rows" layout
  const float* bias;      // [w.rows], or null
  const float* residual;  // [tokens, w.rows], or null
  bool relu_squared;
  float* out;  // [tokens, w.rows]
};

// out = x + down(relu²(up(LayerNorm(x))))
struct Mlp {
  const float* x;  // [tokens, hidden]
  int64_t tokens;
  Norm norm;
  Matrix up;  // [intermediate, hidden], "rows" layout
  const float* up_bias;
  Matrix down;  // [intermediate, hidden], "units" layout
  const float* down_bias;
  int64_t* counts;  // null, or two sums that grow if there are tokens: rows of `down` that were read, and all rows
  float* out;       // [tokens, hidden]
};

// The keys and values of one layer: [k/v, slots, heads, capacity, head_dim].
struct CacheLayer {
  Format format;  // of floats
  void* data;
  int64_t slots;
  int64_t heads;
  int64_t capacity;
  int64_t head_dim;
};

// A token whose slot is -1 is left out of what follows: nothing is written for it, its q and its attention are 0, and
// its position or length may be anything.

struct RotaryAppend {
  const float* qkv;  // [tokens, heads, (q, k, v), head_dim]
  int64_t tokens;
  Norm q_norm;
  Norm k_norm;
  const float* cos;  // [capacity or more, half]
  const float* sin;
  int64_t half;              // rotary_dim / 2
  const int64_t* slots;      // [tokens]
  const int64_t* positions;  // [tokens]
  CacheLayer cache;
  float* q_out;  // [tokens, heads, head_dim]
};

struct DecodeAttention {
  const float* q;  // [tokens, heads, head_dim]
  int64_t tokens;
  CacheLayer cache;
  const int64_t* slots;    // [tokens]
  const int64_t* lengths;  // [tokens]
  int64_t longest;         // at least the largest of them
  float scale;
  float* out;  // [tokens, heads * head_dim]
};

// out = the rows of a table of floats
struct Embed {
  Matrix table;        // [vocab, hidden]
  const int64_t* ids;  // [tokens]
  int64_t tokens;
  float* out;  // [tokens, hidden]
};

// What a decode step leaves for the next one, row by row, as adept_fast/ops/reference.py says it.
struct UpdateDecodeState {
  const int64_t* chosen;  // [rows]
  int64_t rows;
  int64_t* ids;           // [rows]
  int64_t* slots;         // [rows]
  int64_t* positions;     // [rows]
  const int64_t* limits;  // [rows], the position at which a text ends
  const bool* ends;       // [slot_count, vocab], the ids at which a slot's text ends
  int64_t slot_count;
  int64_t vocab;
  int64_t* counts;      // [rows], steps so far
  int64_t* token_ring;  // [rows, depth], of words: the count in the upper half, the id in the lower
  int64_t depth;
};

constexpr int64_t kAbsent = -2;  // what the token ring says of a row that is left out

}  // namespace adept
