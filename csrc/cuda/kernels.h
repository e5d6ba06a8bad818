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

// The order of a matrix's weights in memory: row by row, or one of tile_layout.h.
enum class Order { kRows, kTiles, kStrips };

// out = rows `start` to `stop` of a matrix in 16 bits, row by row: in 4 bits weights times scales, in 8 bits the
// weights alone, as their scales are those of outputs.
struct Widen {
  Format format;
  Order order;
  const void* values;
  const void* scales;  // float16, of a matrix in 4 bits row by row
  int64_t rows;
  int64_t cols;
  int64_t start;
  int64_t stop;
  Format out_format;  // float16 or bfloat16, that of the matrix if it has one
  void* out;          // [stop - start, cols]
};

// The number of columns must be a multiple of 8 (else cudaErrorInvalidValue), and weights aligned to 16 bytes (else
// cudaErrorMisalignedAddress).
cudaError_t widen(const Widen& widen, cudaStream_t stream);

// The inputs of a GEMM: of each token a power of two, and the inputs divided by it, so that none exceeds 2^-raised.
struct PreparedRows {
  Format format;
  void* values;   // [rows, cols]; the rows behind those of tokens become 0
  float* powers;  // [tokens]; 1 in float32
  int64_t tokens;
  int64_t rows;
  int64_t cols;
  int raised;
};

constexpr int64_t kMaxPreparedCols = 32768;  // a block keeps a row in registers
constexpr int64_t kMaxPaddingRows = 4096;

// The product of a GEMM, [tokens or more, cols], or several of parts of the inputs, whose sum it is; the other operands
// turn it into outputs: sums times scales times the power of the token, plus bias.
struct Product {
  Format format;
  const void* values;
  int64_t parts;
  int64_t part_size;    // elements
  const float* powers;  // [tokens]
  const float* scales;  // [cols], or null
  const float* bias;    // [cols], or null
  int64_t tokens;
  int64_t cols;
};

// The number of columns must be a multiple of 4 and at most kMaxPreparedCols (else cudaErrorInvalidValue), and operands
// aligned to 16 bytes (else cudaErrorMisalignedAddress). x: [tokens, cols].
cudaError_t prepare_rows(const float* x, const Norm& norm, const PreparedRows& to, cudaStream_t stream);
// The same of relu²(product), in one part and in the format of `to`.
cudaError_t activate_rows(const Product& product, const PreparedRows& to, cudaStream_t stream);

// out = relu²?(outputs) + residual
struct FinishRows {
  Product product;
  bool relu_squared;
  const float* residual;  // [tokens, cols], or null
  float* out;             // [tokens, cols]
};

cudaError_t finish_rows(const FinishRows& finish, cudaStream_t stream);

// The token ring may be in host memory that the device can write. A row whose slot is out of range is inactive.
cudaError_t update_decode_state(const UpdateDecodeState& state, cudaStream_t stream);

}  // namespace adept::cuda
