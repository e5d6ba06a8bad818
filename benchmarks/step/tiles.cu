// Puts matrices in tiles or strips. Layout: a thread takes every so many pieces of 16 bytes; the floor is what is read
// and written.
#include "tiles.h"

#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace adept::bench {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kBlocksPerMultiprocessor = 8;
constexpr int kPieceBytes = 16, kScalesOfPiece = 8;

// Row by row; what lies beside or below the matrix is 0.
struct Rows {
  const uint8_t* values;
  const __half* scales;  // [rows, groups], or null
  int64_t rows;
  int64_t row_bytes;
  int64_t groups;

  __device__ uint4 piece(int64_t row, int64_t byte) const {
    if (row >= rows || byte >= row_bytes) return {};
    return *reinterpret_cast<const uint4*>(values + row * row_bytes + byte);
  }
  __device__ __half scale(int64_t row, int64_t group) const {
    return row < rows && group < groups ? scales[row * groups + group] : __half{};
  }
};

// [tiles, chunks, bytes of a chunk]
struct Tiles {
  int64_t chunks;

  __device__ uint4 piece(const Rows& from, int64_t unit, int at) const {
    const int step = at / 64, half = at / 32 % 2, g = at % 32 / 4, t = at % 4;
    const int64_t byte = unit % chunks * kChunkRowBytes + 64 * step + 16 * t;
    return from.piece(unit / chunks * kTileRows + 8 * half + g, byte);
  }
  // Groups of 128 columns: one a step.
  __device__ __half scale(const Rows& from, int64_t unit, int at) const {
    const int step = at / 16, g = at % 16 / 2, half = at % 2;
    return from.scale(unit / chunks * kTileRows + 8 * half + g, unit % chunks * 4 + step);
  }
};

// [strips, rows, bytes of a row]
struct Strips {
  int groups;  // of a strip

  __device__ uint4 piece(const Rows& from, int64_t unit, int at) const {
    return from.piece(unit % from.rows, unit / from.rows * kStripRowBytes + kPieceBytes * at);
  }
  __device__ __half scale(const Rows& from, int64_t unit, int at) const {
    return from.scale(unit % from.rows, unit / from.rows * groups + at);
  }
};

template <class Order>
__global__ void __launch_bounds__(kThreads)
    put(Rows from, Order order, int value_pieces, int unit_pieces, int64_t pieces, uint4* to) {
  cuda::pdl_wait();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pieces; i += stride) {
    const int64_t unit = i / unit_pieces;
    const int at = static_cast<int>(i % unit_pieces);
    if (at < value_pieces) {
      to[i] = order.piece(from, unit, at);
      continue;
    }
    __half* const scales = reinterpret_cast<__half*>(to + i);
    for (int j = 0; j < kScalesOfPiece; ++j) {
      scales[j] = order.scale(from, unit, kScalesOfPiece * (at - value_pieces) + j);
    }
  }
}

template <class Order>
DeviceMemory run(const Matrix& matrix, const Order& order, int64_t units, int value_bytes, int unit_bytes) {
  DeviceMemory to(static_cast<size_t>(units * unit_bytes));
  const int group = group_of(matrix.format);
  const Rows from = {static_cast<const uint8_t*>(matrix.values), static_cast<const __half*>(matrix.scales), matrix.rows,
                     matrix.cols * bits_of(matrix.format) / 8, group == 0 ? 0 : matrix.cols / group};
  int multiprocessors = 0;
  check(cuda::multiprocessors(&multiprocessors), "asking for the multiprocessors");
  const int64_t pieces = units * (unit_bytes / kPieceBytes);
  const int64_t blocks =
      std::min<int64_t>((pieces + kThreads - 1) / kThreads, kBlocksPerMultiprocessor * multiprocessors);
  const cuda::Shape shape{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  check(cuda::launch(nullptr, shape, put<Order>, from, order, value_bytes / kPieceBytes, unit_bytes / kPieceBytes,
                     pieces, static_cast<uint4*>(to.get())),
        "putting a matrix in tiles");
  return to;
}

int64_t parts_of(int64_t size, int64_t part) { return (size + part - 1) / part; }

}  // namespace

DeviceMemory in_tiles_of_rows(const Matrix& matrix) {
  const int64_t chunks = parts_of(matrix.cols, chunk_cols(matrix.format));
  return run(matrix, Tiles{chunks}, parts_of(matrix.rows, kTileRows) * chunks, kChunkBytes,
             stored_chunk_bytes(matrix.format));
}

DeviceMemory in_strips(const Matrix& matrix) {
  const int64_t strips = parts_of(matrix.cols, strip_cols(matrix.format));
  const int group = group_of(matrix.format), groups = group == 0 ? 0 : strip_cols(matrix.format) / group;
  return run(matrix, Strips{groups}, strips * matrix.rows, kStripRowBytes, stored_strip_row_bytes(matrix.format));
}

}  // namespace adept::bench
