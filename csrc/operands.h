// The operands of the operators on every device: plain pointers and sizes, no torch.
#pragma once

#include <cstdint>

namespace adept {

enum class Format : int32_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt8,     // one scale an output
  kInt4G32,  // in groups of 32
  kFloat8,   // e4m3, for a GPU
  kInt4G128  // in groups of 128, for a GPU
};

inline bool is_quantized(Format format) { return format >= Format::kInt8; }

// Floats are row-major in both layouts, quantised matrices as adept_fast/quantization packs them: for a CPU in tiles of
// 16 rows (kTiled, for y = W x) or row by row with interleaved columns (kTransposed, for y = Wᵀ x), for a GPU row by
// row in both.
enum class Layout { kTiled, kTransposed };

// A weight matrix.
struct Matrix {
  Format format;
  const void* values;
  const void* scales;  // float32 (8 bits), float16 (4 bits), or null
  int64_t rows;
  int64_t cols;
  bool in_tiles = false;  // as cuda/tile_layout.h describes, for a GPU
};

constexpr int64_t kTileRows = 16;            // rows of a tile
constexpr int64_t kTiledColumns = 64;        // columns of tiles are padded to a multiple of this
constexpr int64_t kTransposedColumns = 128;  // and those of transposed matrices to a multiple of this
// Weights of a row that share a scale. On a GPU rows are padded to whole groups.
constexpr int64_t kGroupSize32 = 32;
constexpr int64_t kGroupSize128 = 128;
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
  Matrix w;               // kTiled
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
  Matrix up;  // [intermediate, hidden], kTiled
  const float* up_bias;
  Matrix down;  // [intermediate, hidden], kTransposed
  const float* down_bias;
  int64_t* counts;  // null, or two sums that grow if there are tokens: rows of `down` that were read, and all rows
  float* out;       // [tokens, hidden]
  const int64_t* slots = nullptr;   // null, or [tokens]: a token whose slot is below 0 activates no neuron
  const float* residual = nullptr;  // [tokens, hidden], to which the product is added; null for x

  const float* base() const { return residual ? residual : x; }
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

// In the operators below, a token whose slot is -1 is left out: nothing is written for it, its q and its attention are
// 0, and its position or length is ignored.

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

// Of the tokens at positions start, start + 1, ... of one sequence.
struct PrefillAttention {
  const float* q;  // [tokens, heads, head_dim]
  int64_t tokens;
  CacheLayer cache;  // has at least start + tokens positions
  int64_t slot;
  int64_t start;
  float scale;
  float* out;  // [tokens, heads * head_dim]
};

// out = rows of a table of floats
struct Embed {
  Matrix table;        // [vocab, hidden]
  const int64_t* ids;  // [tokens]
  int64_t tokens;
  float* out;  // [tokens, hidden]
};

// Updates the state of each row after sampling, as adept_fast/ops/reference.py defines it.
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
  int64_t* token_ring;  // [rows, depth], words with the count in the upper half and the id in the lower
  int64_t depth;
};

constexpr int64_t kAbsent = -2;  // the id in the token ring of an inactive row

}  // namespace adept
