// Workspaces of the CUDA kernels, in bytes. This header needs no CUDA, so that a host without a GPU can plan for one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "operands.h"

namespace adept::cuda {

constexpr int kSplit = 256;               // positions of a block of decode_attention
constexpr int kSampleTile = 2048;         // logits of a block of sample
constexpr int kBins = 1024;               // of sample, for each row,
constexpr int kGroups = 64;               // and groups of them
constexpr int kMaxTopLogprobs = 20;       // ids of token_logprobs
constexpr int kMaxParts = 256;            // of the down-projection's neurons, and
constexpr int kPartsOfShare = 8;          // what a block takes of them
constexpr int64_t kUnscaleBytes = 256;    // of a product's inputs: the scale of each token, before the rows
constexpr int64_t kMaxChunkCols = 512;    // inputs are padded to a multiple of at most this, as in int4, and
constexpr int64_t kRowPaddingBytes = 64;  // by this much after each token

constexpr int64_t blocks_of(int64_t count, int64_t block) { return (count + block - 1) / block; }

constexpr int64_t attention_partials_bytes(int64_t tokens, int64_t heads, int64_t head_dim, int64_t positions) {
  const int64_t splits = blocks_of(positions, kSplit);
  return splits > 1 ? tokens * heads * splits * (head_dim + 2) * int64_t{sizeof(float)} : 0;
}

// Whole warps: a lane looks at one neuron at a time.
constexpr int64_t neurons_of_part(int64_t neurons) {
  return std::max<int64_t>(blocks_of(neurons, kMaxParts * 32), 1) * 32;
}

constexpr int64_t shares_of(int64_t neurons) { return blocks_of(neurons, kPartsOfShare * neurons_of_part(neurons)); }

constexpr int64_t partials_bytes(int64_t tokens, int64_t neurons, int64_t hidden) {
  return shares_of(neurons) * tokens * hidden * int64_t{sizeof(float)};
}

constexpr int64_t prepared_inputs_bytes(int64_t tokens, int64_t cols) {
  return kUnscaleBytes + tokens * (2 * blocks_of(cols, kMaxChunkCols) * kMaxChunkCols + kRowPaddingBytes);
}

// For each token: tiles of bins (8 bytes each), ids in their order (2), extremes and a mass; groups of bins, of a mass
// and a count; a counter. In multiples of 16.
constexpr int64_t sample_lists_bytes(int64_t tokens, int64_t vocab) {
  const int64_t tiles = blocks_of(vocab, kSampleTile) * (8 * kBins + 2 * kSampleTile + 16 + 8);
  return tokens * blocks_of(tiles + kGroups * (8 + 4) + 4, 16) * 16;
}

// For each token: of each tile its largest logit and a sum (8 bytes), and the largest of its logits (8 each).
constexpr int64_t logprob_lists_bytes(int64_t tokens, int64_t vocab, int64_t count) {
  return tokens * blocks_of(vocab, kSampleTile) * 8 * (1 + count);
}

// At most what the kernels of one decode step take on any GPU, if nothing is reused before the end of the step.
constexpr int64_t decode_step_bytes(int64_t rows, int64_t positions, int64_t hidden, int64_t intermediate,
                                    int64_t heads, int64_t head_dim, int64_t vocab) {
  const int64_t inputs = 3 * prepared_inputs_bytes(rows, hidden);  // of qkv, the output projection and the logits
  // The activations, and what the two halves of the MLP share.
  const int64_t mlp = rows * intermediate * 4 + 256 +
                      std::max(prepared_inputs_bytes(rows, hidden), partials_bytes(rows, intermediate, hidden));
  return attention_partials_bytes(rows, heads, head_dim, positions) + inputs + mlp + sample_lists_bytes(rows, vocab);
}

}  // namespace adept::cuda
