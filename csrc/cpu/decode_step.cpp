// decode_step: the operators of a whole step without Python in between: a small model's operators take microseconds,
// and so does a call from Python. The operators' files have their layouts, lower bounds and limits.
#include <cstring>

#include "kernels_of.h"
#include "workspace.h"

namespace adept::ADEPT_ISA {
namespace {

template <class Element>
void embed(const Element* row, int64_t hidden, float* out) {
  for (int64_t c = 0; c < hidden; c += kLanes) {
    const int lanes = int(std::min<int64_t>(kLanes, hidden - c));
    store_first(out + c, load_first(row + c, lanes), lanes);
  }
}

void embed(const Matrix& table, int64_t id, float* out) {
  const int64_t at = id * table.cols;
  switch (table.format) {
    case Format::kFloat16: return embed(static_cast<const Half*>(table.values) + at, table.cols, out);
    case Format::kBFloat16: return embed(static_cast<const BFloat16*>(table.values) + at, table.cols, out);
    default: return embed(static_cast<const float*>(table.values) + at, table.cols, out);
  }
}

void run(const Threads& threads, const DecodeStep& step) {
  const int64_t tokens = step.tokens, hidden = step.embedding.cols;
  Buffer<float> x(tokens * hidden), after(tokens * hidden), q(tokens * hidden), attended(tokens * hidden);
  Buffer<float> qkv(tokens * 3 * hidden);
  Buffer<int64_t> lengths(tokens);
  int64_t longest = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    embed(step.embedding, step.ids[token], x + token * hidden);
    lengths[token] = step.positions[token] + 1;
    longest = std::max(longest, lengths[token]);
  }
  for (int64_t index = 0; index < step.layer_count; ++index) {
    const DecoderLayer& layer = step.layers[index];
    linear(threads, {x, tokens, layer.input_norm, layer.qkv, layer.qkv_bias, nullptr, false, qkv});
    rotary_append(threads, {qkv, tokens, layer.q_norm, layer.k_norm, step.cos, step.sin, step.half, step.slots,
                            step.positions, layer.cache, q});
    decode_attention(threads, {q, tokens, layer.cache, step.slots, lengths, longest, step.scale, attended});
    linear(threads, {attended, tokens, {}, layer.dense, layer.dense_bias, x, false, after});
    mlp(threads, {after, tokens, layer.mlp_norm, layer.up, layer.up_bias, layer.down, layer.down_bias, step.counts, x});
  }
  linear(threads, {x, tokens, step.final_norm, step.lm_head, nullptr, nullptr, false, step.logits});
}

// Moves the first `count` rows of the logits to the rows of their tokens, and clears the others.
void spread(const int64_t* token_of, int64_t count, const DecodeStep& step) {
  const size_t bytes = size_t(step.lm_head.rows) * sizeof(float);
  for (int64_t token = step.tokens - 1, next = count - 1; token >= 0; --token) {
    float* to = step.logits + token * step.lm_head.rows;
    if (next < 0 || token_of[next] != token)
      std::memset(to, 0, bytes);
    else
      std::memmove(to, step.logits + next-- * step.lm_head.rows, bytes);
  }
}

}  // namespace

void decode_step(const Threads& threads, const DecodeStep& step) {
  Buffer<int64_t> token_of(step.tokens), ids(step.tokens), slots(step.tokens), positions(step.tokens);
  int64_t count = 0;
  for (int64_t token = 0; token < step.tokens; ++token) {
    if (step.slots[token] < 0) continue;
    token_of[count] = token;
    ids[count] = step.ids[token];
    slots[count] = step.slots[token];
    positions[count++] = step.positions[token];
  }
  if (count == step.tokens) return run(threads, step);
  // Tokens that are left out cost nothing, and activate no neuron.
  DecodeStep present = step;
  present.tokens = count;
  present.ids = ids;
  present.slots = slots;
  present.positions = positions;
  if (count > 0) run(threads, present);
  spread(token_of, count, step);
}

}  // namespace adept::ADEPT_ISA
