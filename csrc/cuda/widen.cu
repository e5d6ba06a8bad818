// widen: rows of a matrix in 16 bits, for a GEMM.
//
// Layout: a warp takes 1024 columns of a row, a block of 16 warps those of 16 rows. A piece is 8 weights, which a lane
// loads as 16, 8 or 4 bytes (of weights in 16, 8 or 4 bits) and stores as 16; neighbouring lanes have neighbouring
// pieces. All 4 pieces of a lane are loaded before one is stored, and before the previous kernel has ended, as nothing
// writes weights. Lower bound: each weight is read once and 2 bytes are written; 4096 x 4096 in 4 bits are 9 and 34 MB,
// of which the written ones fit in L2. Limit: the stores.

#include <cstdint>

#include "cuda/formats.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tile_layout.h"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace {

constexpr int kRowsOfBlock = 16;
constexpr int kPieceWeights = 8;
constexpr int kPiecesOfLane = 4;
constexpr int kSegmentPieces = kPiecesOfLane * kWarpSize;  // that a warp takes of a row
constexpr int kThreads = kRowsOfBlock * kWarpSize;

// Bytes of a piece.
template <Format kFormat>
constexpr int kPieceBytes = kPieceWeights * Weights<kFormat>::kBits / 8;

// Bytes between rows of a strip, and between chunks of a tile.
template <Format kFormat>
constexpr unsigned kStripStride = stored_strip_row_bytes(kFormat);
template <Format kFormat>
constexpr unsigned kChunkStride = stored_chunk_bytes(kFormat);
constexpr unsigned kRowsOfTile = kTileRows;

// The addresses of a piece and of its scale.
struct Address {
  const uint8_t* weights;
  const uint8_t* scale;
};

template <Format kFormat, Order kOrder>
__device__ __forceinline__ Address address_of(const Widen& widen, int row, int piece) {
  constexpr unsigned kBytes = kPieceBytes<kFormat>, kScaleBytes = sizeof(__half);
  constexpr unsigned kGroupPieces = kGroup<kFormat> == 0 ? 1 : kGroup<kFormat> / kPieceWeights;
  const auto* values = static_cast<const uint8_t*>(widen.values);
  const auto r = static_cast<unsigned>(row), p = static_cast<unsigned>(piece);
  if constexpr (kOrder == Order::kRows) {
    const auto pieces = static_cast<unsigned>(stored_cols_of<kFormat>(widen.cols)) / kPieceWeights;
    const auto* scales = static_cast<const uint8_t*>(widen.scales);
    return {values + (uint64_t{r} * pieces + p) * kBytes,
            scales + (uint64_t{r} * (pieces / kGroupPieces) + p / kGroupPieces) * kScaleBytes};
  } else if constexpr (kOrder == Order::kStrips) {
    constexpr unsigned kPieces = kStripRowBytes / kBytes;
    const uint8_t* begin = values + (static_cast<uint64_t>(widen.rows) * (p / kPieces) + r) * kStripStride<kFormat>;
    const unsigned in_strip = p % kPieces;
    return {begin + in_strip * kBytes, begin + kStripRowBytes + in_strip / kGroupPieces * kScaleBytes};
  } else {
    constexpr unsigned kPieces = kChunkRowBytes / kBytes;
    const unsigned chunks = (static_cast<unsigned>(widen.cols) / kPieceWeights + kPieces - 1) / kPieces;
    const uint8_t* begin = values + (uint64_t{r / kRowsOfTile} * chunks + p / kPieces) * kChunkStride<kFormat>;
    const unsigned byte = p % kPieces * kBytes, step = byte / 64, t = byte % 64 / 16, half = r % kRowsOfTile / 8,
                   g = r % 8;
    const unsigned scale =
        ((step * 8 + g) * (kGroup<kFormat> == kGroupSize32 ? 4 : 1) + (kGroup<kFormat> == kGroupSize32 ? t : 0)) * 2 +
        half;
    return {begin + ((step * 2 + half) * 32 + 4 * g + t) * 16 + byte % 16, begin + kChunkBytes + scale * kScaleBytes};
  }
}

template <Format kFormat>
__device__ __forceinline__ uint4 load_piece(const uint8_t* from) {
  if constexpr (kPieceBytes<kFormat> == 16) return load_once(from);
  if constexpr (kPieceBytes<kFormat> == 8) {
    const uint2 words = load_once_8(from);
    return {words.x, words.y, 0, 0};
  }
  return {load_once_4(from), 0, 0, 0};
}

// The i-th pair of a piece, rounded as torch rounds.
template <Format kFormat, Format kOut>
__device__ __forceinline__ uint32_t widen_pair(const uint4& piece, int i, uint16_t scale) {
  const uint32_t pair = Weights<kFormat>::along(piece, i);
  if constexpr (kFormat == kOut) return pair;
  if constexpr (kOut == Format::kFloat16) return kGroup<kFormat> == 0 ? pair : scale_pair(pair, scale * 0x10001u);
  float2 values = Element<Format::kFloat16>::unpack(pair);
  if constexpr (kGroup<kFormat> != 0) {
    const float by = __bfloat162float(__float2bfloat16_rn(__half2float(bits_as<__half>(scale))));
    values = {values.x * by, values.y * by};
  }
  return Element<Format::kBFloat16>::pack(values.x, values.y);
}

template <Format kFormat, Order kOrder, Format kOut>
__global__ void __launch_bounds__(kThreads, 3) widen_rows(const Widen widen) {
  const int pieces = static_cast<int>(widen.cols) / kPieceWeights;
  const unsigned segments = (unsigned(pieces) + kSegmentPieces - 1) / kSegmentPieces;
  const int row = static_cast<int>(widen.start) + int(blockIdx.x / segments) * kRowsOfBlock + warp_index();
  const int first = int(blockIdx.x % segments) * kSegmentPieces + lane_index();
  uint4 loaded[kPiecesOfLane];
  uint16_t scales[kPiecesOfLane] = {};
#pragma unroll
  for (int i = 0; i < kPiecesOfLane; ++i) {
    if (row >= widen.stop || first + i * kWarpSize >= pieces) break;
    const Address at = address_of<kFormat, kOrder>(widen, row, first + i * kWarpSize);
    loaded[i] = load_piece<kFormat>(at.weights);
    if constexpr (kGroup<kFormat> != 0) scales[i] = __ldg(reinterpret_cast<const uint16_t*>(at.scale));
  }
  pdl_launch_dependents();
  pdl_wait();
  uint4* const to = static_cast<uint4*>(widen.out) + (row - widen.start) * pieces + first;
#pragma unroll
  for (int i = 0; i < kPiecesOfLane; ++i) {
    if (row >= widen.stop || first + i * kWarpSize >= pieces) break;
    to[i * kWarpSize] = {
        widen_pair<kFormat, kOut>(loaded[i], 0, scales[i]), widen_pair<kFormat, kOut>(loaded[i], 1, scales[i]),
        widen_pair<kFormat, kOut>(loaded[i], 2, scales[i]), widen_pair<kFormat, kOut>(loaded[i], 3, scales[i])};
  }
}

template <Format kFormat, Order kOrder, Format kOut>
cudaError_t launch_as(const Widen& widen, cudaStream_t stream) {
  const int64_t segments = blocks_of(widen.cols, kSegmentPieces * kPieceWeights);
  const int64_t blocks = blocks_of(widen.stop - widen.start, kRowsOfBlock) * segments;
  if (!fits_grid(blocks)) return cudaErrorInvalidValue;
  return launch(stream, {static_cast<unsigned>(blocks), kThreads}, widen_rows<kFormat, kOrder, kOut>, widen);
}

template <Format kFormat, Format kOut>
cudaError_t widen_to(const Widen& widen, cudaStream_t stream) {
  if (widen.order == Order::kTiles) return launch_as<kFormat, Order::kTiles, kOut>(widen, stream);
  if (widen.order == Order::kStrips) return launch_as<kFormat, Order::kStrips, kOut>(widen, stream);
  if constexpr (kFormat != kOut) return launch_as<kFormat, Order::kRows, kOut>(widen, stream);
  return cudaErrorInvalidValue;  // there is nothing to widen
}

template <Format kFormat>
cudaError_t widen_from(const Widen& widen, cudaStream_t stream) {
  if (widen.out_format == Format::kFloat16) return widen_to<kFormat, Format::kFloat16>(widen, stream);
  return widen_to<kFormat, Format::kBFloat16>(widen, stream);
}

}  // namespace

cudaError_t widen(const Widen& widen, cudaStream_t stream) {
  if (widen.cols % kPieceWeights != 0) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(widen.values) % 16 != 0) return cudaErrorMisalignedAddress;
  if (widen.start == widen.stop) return cudaSuccess;
  switch (widen.format) {
    case Format::kFloat16: return widen_to<Format::kFloat16, Format::kFloat16>(widen, stream);
    case Format::kBFloat16: return widen_to<Format::kBFloat16, Format::kBFloat16>(widen, stream);
    case Format::kInt8: return widen_from<Format::kInt8>(widen, stream);
    case Format::kFloat8: return widen_from<Format::kFloat8>(widen, stream);
    case Format::kInt4G32: return widen_from<Format::kInt4G32>(widen, stream);
    case Format::kInt4G128: return widen_from<Format::kInt4G128>(widen, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace adept::cuda
