// The CPU kernels: one table of functions for each instruction set; dispatch.cpp chooses one at run time.
#pragma once

#include <cstdint>

#include "operands.h"

namespace adept {

// A pool of threads: run() calls body(context) on up to `count` threads at once and waits for them.
struct Threads {
  int64_t count;
  void (*run)(int64_t count, void (*body)(void*), void* context);
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
  // The sum of all whole 32-bit integers.
  int32_t (*read)(const Threads&, const void* from, int64_t bytes);
};

// The kernels in use. Instruction sets are named portable, avx2, avx512 and avx512_vnni.
const Kernels& kernels();
const char* runnable_instruction_sets();     // names, best first, with commas between
bool use_instruction_set(const char* name);  // false if this machine cannot run it, or it was not compiled

}  // namespace adept
