// What the CPU kernels take and give: plain pointers and sizes, no torch. One table of functions for each
// instruction set; dispatch.cpp chooses one at run time.
#pragma once

#include <cstdint>

namespace adept {

enum class Format : int32_t { kFloat32, kFloat16, kBFloat16, kInt8, kInt4 };

inline bool is_quantized(Format format) { return format == Format::kInt8 || format == Format::kInt4; }

// A weight matrix. Floats are row-major [rows, cols]. Quantised matrices are packed as adept_fast/quantize.py
// says, in tiles of 16 rows ("rows" layout, for y = W x) or row by row ("units" layout, for y = u Wt).
struct Matrix {
  Format format;
  const void* values;
  const void* scales;  // float32 (int8), float16 (int4), or null
  int64_t rows;
  int64_t cols;
};

constexpr int64_t kTileRows = 16;      // rows in a tile of the "rows" layout
constexpr int64_t kRowsPadding = 64;   // the "rows" layout's columns are a multiple of this
constexpr int64_t kUnitsPadding = 128; // the "units" layout's columns are a multiple of this
constexpr int64_t kGroup = 32;         // int4 weights that share a scale
// Sums of products of bytes stay within 32 bits up to here.
constexpr int64_t kMaxQuantizedInputs = 65536;

struct Norm {
  const float* gamma;  // null: no LayerNorm
  const float* beta;
  float eps;
};

// A pool of threads: run() calls body(context) on up to `count` threads at once and waits for them.
struct Threads {
  int64_t count;
  void (*run)(int64_t count, void (*body)(void*), void* context);
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
  int64_t* counts;  // null, or two sums that grow: rows of `down` that were read, and rows there are
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
  float scale;
  float* out;  // [tokens, heads * head_dim]
};

struct DecoderLayer {
  Norm input_norm;
  Matrix qkv;
  const float* qkv_bias;
  Norm q_norm, k_norm;
  Matrix dense;
  const float* dense_bias;
  Norm mlp_norm;
  Matrix up;
  const float* up_bias;
  Matrix down;
  const float* down_bias;
  CacheLayer cache;
};

// One token of each of several sequences, from ids to logits.
struct DecodeStep {
  const int64_t* ids;        // [tokens]
  const int64_t* slots;      // [tokens]
  const int64_t* positions;  // [tokens]
  int64_t tokens;
  Matrix embedding;
  const DecoderLayer* layers;
  int64_t layer_count;
  const float* cos;  // [capacity or more, half]
  const float* sin;
  int64_t half;
  float scale;
  Norm final_norm;
  Matrix lm_head;
  int64_t* counts;  // as in Mlp
  float* logits;    // [tokens, lm_head.rows]
};

struct Kernels {
  const char* name;
  void (*linear)(const Threads&, const Linear&);
  void (*mlp)(const Threads&, const Mlp&);
  void (*rotary_append)(const Threads&, const RotaryAppend&);
  void (*decode_attention)(const Threads&, const DecodeAttention&);
  void (*decode_step)(const Threads&, const DecodeStep&);
  // A quantised matrix in the "units" layout as bfloat16 or float32 [rows, cols].
  void (*dequantize_units)(const Threads&, const Matrix&, Format to, void* out);
  // The sum of all whole 32-bit integers: what a kernel could read at most.
  int32_t (*read)(const Threads&, const void* from, int64_t bytes);
};

// The kernels in use. Instruction sets are named portable, avx2, avx512 and avx512_vnni.
const Kernels& kernels();
const char* runnable_instruction_sets();     // names, best first, with commas between
bool use_instruction_set(const char* name);  // false if this machine cannot run it, or it was not compiled

}  // namespace adept
