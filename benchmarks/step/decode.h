// The decode step: its state, and each operator queued by its launcher, as the package's runtime does.
//
// What advances is a copy of the slots and positions that rotary and attention read, so that every replay is the same
// step; the ids that it chooses are those that the next step embeds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cases.h"
#include "cuda/decode_layers.h"
#include "cuda/kernels.h"
#include "device.h"
#include "model.h"

namespace adept::bench {

// Activations and per-row state for one number of tokens.
class State {
 public:
  State(const Shapes& shapes, int64_t tokens, int64_t positions, const std::string& sampling);

  // Fresh inputs for every operator.
  void reset();

  int64_t tokens;
  Buffer<float> x, y;      // [tokens, hidden]: the hidden state, and that after attention
  Buffer<float> qkv;       // [tokens, heads, (q, k, v), head_dim]
  Buffer<float> q;         // [tokens, heads, head_dim]
  Buffer<float> attended;  // [tokens, hidden]
  Buffer<float> after;     // [tokens, hidden]: after all layers, by decode_layers
  Buffer<float> logits;    // [tokens, vocab]
  Buffer<int64_t> chosen, ids, slots, positions, lengths;                     // each [tokens]
  Buffer<int64_t> advancing_slots, advancing_positions, limits, step_counts;  // each [tokens]
  Buffer<int64_t> neuron_counts;                                              // rows of `down` read, and all
  PinnedWords token_ring;                                                     // [tokens, kRingDepth]
  Buffer<uint8_t> ends, seen;                                                 // bools [tokens, vocab]
  Buffer<float> logit_bias;                                                   // [tokens, vocab]
  Buffer<int32_t> token_counts;                                               // [tokens, vocab]
  Buffer<float> temperature, top_p, min_p, penalty, frequency_penalty, presence_penalty;
  Buffer<uint8_t> is_biased;
  Buffer<int64_t> top_k, seed;
};

constexpr int64_t kRingDepth = 16;

// The operators of a step on a model. One of model and caches may be null where an operator does without.
class Decode {
 public:
  Decode(const Shapes& shapes, const Model* model, const Tables& tables, const Caches* caches, State& state,
         cudaStream_t stream);

  // Queues the calls of a case; how many they are. Throws DeviceError, or OutOfMemory without a cache for each layer
  // where decode_layers needs them.
  int64_t queue(const Case& item);

  // Why one kernel does not compute all layers, or nothing.
  std::string refuses_one_kernel() const;

  // Fills what a case writes with NaN, and ids with -1, so that what is not written shows.
  void poison(const Case& item);

  // What a case writes last, on the host. Ids come as floats.
  std::vector<float> output(const Case& item) const;

 private:
  void layernorm_qkv(int64_t layer);
  void rotary_append(int64_t layer);
  void decode_attention(int64_t layer);
  void linear_residual(int64_t layer);
  void mlp(int64_t layer);
  void lm_head();
  void lm_head(const Buffer<float>& x);
  void sample();
  void embed();
  void update_decode_state();
  void layers(const Case& item);
  void step(const Case& item);
  cuda::DecodeLayers all_layers() const;

  void* workspace(int64_t bytes);

  const Shapes shapes_;
  const Model* model_;
  const Tables& tables_;
  const Caches* caches_;
  State& state_;
  cudaStream_t stream_;
  std::vector<DeviceMemory> outgrown_;  // workspaces that a graph may still name
  DeviceMemory workspace_;
  int64_t workspace_bytes_ = 0;
  Buffer<int64_t> counters_;  // of decode_layers
};

}  // namespace adept::bench
