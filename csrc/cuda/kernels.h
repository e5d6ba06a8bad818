// The CUDA kernels as the bindings call them, with operands, workspace and a stream and without torch.
//
// A launcher only queues its work: it allocates nothing and waits for nothing, so that it can be captured into a
// graph. It returns the error of the launch; an error of the kernel itself is returned by the next synchronization.
// Operands point to memory of the current device. `workspace` has at least the bytes that the function beside the
// launcher returns, aligned to 256; nothing in it outlives the call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "operands.h"

namespace adept::cuda {

constexpr int64_t kMaxTokens = 16;    // of a call
constexpr int64_t kColsMultiple = 8;  // of every matrix
// Of a matrix: the kernels count rows, their tiles and the bits of a row in 32 bits.
constexpr int64_t kMaxRows = 1 << 30;
constexpr int64_t kMaxCols = 1 << 26;

// Copies `bytes` bytes; the two ranges may not overlap.
cudaError_t copy(const void* from, void* to, size_t bytes, cudaStream_t stream);

// Reads `bytes` bytes and adds the sum of their 32-bit words to *sink, one word of device memory. `bytes` must be a
// multiple of 16 (else cudaErrorInvalidValue) and `from` aligned to 16 (else cudaErrorMisalignedAddress).
cudaError_t read(const void* from, size_t bytes, uint32_t* sink, cudaStream_t stream);

// In linear and mlp, the number of inputs must be a multiple of 8 (else cudaErrorInvalidValue), and weights and inputs
// aligned to 16 bytes (else cudaErrorMisalignedAddress).
int64_t linear_workspace_bytes(const Linear& linear);
cudaError_t linear(const Linear& linear, void* workspace, cudaStream_t stream);

int64_t mlp_workspace_bytes(const Mlp& mlp);
cudaError_t mlp(const Mlp& mlp, void* workspace, cudaStream_t stream);

// A token whose slot or position is out of range is left out: nothing is written for it, and its q is 0.
cudaError_t rotary_append(const RotaryAppend& append, cudaStream_t stream);

// Lengths are read on the device, and cut to `longest`, which sets the grid. A token with a bad slot gets zeros.
int64_t decode_attention_workspace_bytes(const DecodeAttention& attention);
cudaError_t decode_attention(const DecodeAttention& attention, void* workspace, cudaStream_t stream);

// Any number of tokens, of a cache in float16 or bfloat16 (else cudaErrorInvalidValue).
cudaError_t prefill_attention(const PrefillAttention& attention, cudaStream_t stream);

// The next id of each row. Settings are indexed by slot, so that a captured graph sees them change.
struct Sample {
  const float* logits;  // [tokens, vocab]
  int64_t tokens;
  int64_t vocab;
  const int64_t* slots;      // [tokens]
  const int64_t* positions;  // [tokens], of the new tokens
  int64_t slot_count;
  const float* temperature;  // [slot_count], and so are the others; 0 for the most likely token
  const int64_t* top_k;      // 0 for all
  const float* top_p;
  const float* min_p;
  const float* repetition_penalty;
  const float* frequency_penalty;
  const float* presence_penalty;
  const bool* is_biased;
  const int64_t* seed;
  const float* logit_bias;  // [slot_count, vocab], read for slots that are biased
  bool* seen;               // [slot_count, vocab]; the chosen ids of slots with a repetition penalty are added
  int32_t* counts;          // [slot_count, vocab]; those of slots with one of the other two are counted
  int64_t* ids;             // [tokens], -1 if a row's logits are no distribution
};

int64_t sample_workspace_bytes(const Sample& sample);
cudaError_t sample(const Sample& sample, void* workspace, cudaStream_t stream);

struct TokenLogprobs {
  const float* logits;  // [tokens, vocab]
  int64_t tokens;
  int64_t vocab;
  const int64_t* chosen;  // [tokens]; an id out of range becomes -1 with a log-probability that is NaN
  int64_t count;          // of the most likely ids, at most kMaxTopLogprobs and vocab
  float* out;             // [tokens, 2, 1 + count]: ids and their log-probabilities, the chosen one's first
};

int64_t token_logprobs_workspace_bytes(const TokenLogprobs& operands);
cudaError_t token_logprobs(const TokenLogprobs& operands, void* workspace, cudaStream_t stream);

// Any number of tokens. The table may be in host memory that the device can read. An id out of range gives zeros.
cudaError_t embed(const Embed& embed, cudaStream_t stream);

// The token ring may be in host memory that the device can write. A row whose slot is out of range is inactive.
cudaError_t update_decode_state(const UpdateDecodeState& state, cudaStream_t stream);

}  // namespace adept::cuda
