// linear: chooses the kernel for the format and the tokens; linear.cuh has the layout, lower bound and limit.
#include "cuda/linear.cuh"

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/tile_linear.cuh"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace {

// Up to this many tokens, each block normalises the inputs itself while its first weights are loading. For more, a
// kernel does it once before: at 8 tokens, 264 blocks would read 35 MB of inputs, gammas and betas from L2.
constexpr int64_t kTokensPreparedInBlock = 2;
constexpr unsigned kPrepareThreads = 256;
constexpr int kBlocksPerMultiprocessor = 2;

template <Format kFormat>
__global__ void __launch_bounds__(kPrepareThreads) prepare_inputs(const Linear linear, const PreparedInputs to) {
  __shared__ float scratch[kPrepareThreads / kWarpSize];
  pdl_wait();
  pdl_launch_dependents();
  const int cols = static_cast<int>(linear.w.cols), token = static_cast<int>(blockIdx.x);
  uint4* const row = to.rows + token * row_runs<kFormat>(cols);
  const float inverse =
      prepare_token<kFormat, WholeBlock>(linear.x + int64_t{token} * cols, linear.norm, cols, row, scratch);
  if (threadIdx.x == 0) to.unscale[token] = inverse;
}

template <Format kFormat>
size_t input_bytes(const Linear& linear) {
  return static_cast<size_t>(linear.tokens) * row_runs<kFormat>(linear.w.cols) * sizeof(uint4);
}

// The kernel of matrices in rows.
template <Format kFormat>
struct OfRows {
  static size_t shared_bytes(const Linear& linear, int token_tiles) {
    return input_bytes<kFormat>(linear) + sums_of_block(token_tiles) * sizeof(float);
  }

  template <int kTokenTiles, bool kPrepared>
  static cudaError_t multiply(const Linear& linear, const PreparedInputs& prepared, cudaStream_t stream) {
    int count = 0;
    if (const cudaError_t error = multiprocessors(&count)) return error;
    const auto kernel = multiply_rows<kFormat, kTokenTiles, kPrepared>;
    const size_t shared = shared_bytes(linear, kTokenTiles);
    if (const cudaError_t error = allow_shared_bytes(kernel, shared)) return error;
    const int blocks_of_tiles = (tiles_of(linear.w.rows) + kTokenTiles - 1) / kTokenTiles;
    const int blocks = std::min(blocks_of_tiles, count * kBlocksPerMultiprocessor / kTokenTiles);
    const Shape shape = {static_cast<unsigned>(blocks), kTokenTiles * kTeamThreads, shared};
    return launch(stream, shape, kernel, linear, prepared);
  }
};

// The kernel of matrices in tiles.
template <Format kFormat>
struct OfTiles {
  static constexpr size_t kStage = kStageBytes<kFormat> + Ring::kBarrierBytes;
  static constexpr size_t kMinStages = 2, kMaxStages = 8;

  static size_t bytes_beside_ring(const Linear& linear, int token_tiles) {
    return input_bytes<kFormat>(linear) + sums_of_team(token_tiles) * sizeof(float);
  }

  static size_t shared_bytes(const Linear& linear, int token_tiles) {
    return kMinStages * kStage + bytes_beside_ring(linear, token_tiles) + kStaticSharedBytes;
  }

  template <int kTokenTiles, bool kPrepared>
  static cudaError_t multiply(const Linear& linear, const PreparedInputs& prepared, cudaStream_t stream) {
    int count = 0;
    size_t of_block = 0, beside_another = 0;
    if (const cudaError_t error = multiprocessors(&count)) return error;
    if (const cudaError_t error = max_shared_bytes(&of_block)) return error;
    if (const cudaError_t error = shared_bytes_beside_another(&beside_another)) return error;
    const size_t other = bytes_beside_ring(linear, kTokenTiles);
    // The next kernel's ring fills while this one's last tiles are multiplied, if both fit.
    const size_t room = beside_another >= other + kMinStages * kStage ? beside_another : of_block - kStaticSharedBytes;
    const size_t stages = std::min((room - other) / kStage, kMaxStages);
    const auto kernel = multiply_matrix<kFormat, kTokenTiles, kPrepared>;
    const size_t shared = stages * kStage + other;
    if (const cudaError_t error = allow_ring_bytes(kernel, shared)) return error;
    const Shape shape = {static_cast<unsigned>(std::min(tiles_of(linear.w.rows), count)), kTileThreads, shared};
    return launch(stream, shape, kernel, linear, prepared, static_cast<int>(stages));
  }
};

template <Format kFormat, class Kernel>
cudaError_t multiply_pass(const Linear& linear, void* workspace, cudaStream_t stream) {
  if (linear.tokens <= kTokensPreparedInBlock) return Kernel::template multiply<1, false>(linear, {}, stream);
  const PreparedInputs prepared = {reinterpret_cast<uint4*>(static_cast<char*>(workspace) + kUnscaleBytes),
                                   static_cast<float*>(workspace)};
  const Shape shape = {static_cast<unsigned>(linear.tokens), kPrepareThreads};
  if (const cudaError_t error = launch(stream, shape, prepare_inputs<kFormat>, linear, prepared)) return error;
  return linear.tokens <= kTokensOfTile ? Kernel::template multiply<1, true>(linear, prepared, stream)
                                        : Kernel::template multiply<2, true>(linear, prepared, stream);
}

// The tokens from `first` on, at most `count`.
Linear some_tokens(const Linear& linear, int64_t first, int64_t count) {
  Linear some = linear;
  some.tokens = std::min(count, linear.tokens - first);
  some.x += first * linear.w.cols;
  some.out += first * linear.w.rows;
  if (some.residual != nullptr) some.residual += first * linear.w.rows;
  return some;
}

// The number of tokens whose inputs fit in shared memory; 0 if not even one does.
template <class Kernel>
int64_t tokens_of_pass(const Linear& linear, size_t room) {
  if (linear.tokens > kTokensOfTile && Kernel::shared_bytes(linear, 2) <= room) return linear.tokens;
  for (int64_t tokens = std::min<int64_t>(linear.tokens, kTokensOfTile); tokens > 0; --tokens)
    if (Kernel::shared_bytes(some_tokens(linear, 0, tokens), 1) <= room) return tokens;
  return 0;
}

template <Format kFormat, class Kernel>
cudaError_t multiply_by(const Linear& linear, void* workspace, cudaStream_t stream) {
  size_t room = 0;
  if (const cudaError_t error = max_shared_bytes(&room)) return error;
  const int64_t count = tokens_of_pass<Kernel>(linear, room);
  if (count == 0) return cudaErrorInvalidValue;
  for (int64_t first = 0; first < linear.tokens; first += count) {
    const cudaError_t error = multiply_pass<kFormat, Kernel>(some_tokens(linear, first, count), workspace, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <Format kFormat>
cudaError_t multiply_in(const Linear& linear, void* workspace, cudaStream_t stream) {
  return linear.w.in_tiles ? multiply_by<kFormat, OfTiles<kFormat>>(linear, workspace, stream)
                           : multiply_by<kFormat, OfRows<kFormat>>(linear, workspace, stream);
}

}  // namespace

int64_t linear_workspace_bytes(const Linear& linear) {
  if (linear.tokens <= kTokensPreparedInBlock) return 0;
  // int4 has the longest chunks of all formats.
  static_assert(kChunkCols<Format::kInt4G128> == kMaxChunkCols);
  static_assert(row_runs<Format::kInt4G128>(0) * sizeof(uint4) == kRowPaddingBytes);
  return prepared_inputs_bytes(linear.tokens, linear.w.cols);
}

cudaError_t linear(const Linear& linear, void* workspace, cudaStream_t stream) {
  if (linear.w.cols == 0 || linear.w.cols % kRun != 0) return cudaErrorInvalidValue;
  if (linear.tokens == 0 || linear.w.rows == 0) return cudaSuccess;
  const bool aligned = is_aligned(linear.x) && is_aligned(linear.norm.gamma) && is_aligned(linear.norm.beta) &&
                       is_aligned(linear.w.values);
  if (!aligned) return cudaErrorMisalignedAddress;
  switch (linear.w.format) {
    case Format::kFloat16: return multiply_in<Format::kFloat16>(linear, workspace, stream);
    case Format::kBFloat16: return multiply_in<Format::kBFloat16>(linear, workspace, stream);
    case Format::kInt8: return multiply_in<Format::kInt8>(linear, workspace, stream);
    case Format::kFloat8: return multiply_in<Format::kFloat8>(linear, workspace, stream);
    case Format::kInt4G32: return multiply_in<Format::kInt4G32>(linear, workspace, stream);
    case Format::kInt4G128: return multiply_in<Format::kInt4G128>(linear, workspace, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace adept::cuda
