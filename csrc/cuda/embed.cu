// embed: the tokens' rows of the embedding, as floats.
//
// Layout: a thread converts 16 bytes of a row; a block takes up to 256 such pieces of one token's row. Lower bound: a
// row of the 8B's in 16 bits is 8 kB in and 16 kB out, 8 ns at 3.0 TB/s. Limit for few tokens: the launch and one chain
// of loads, the id and then the row. A table in pinned host memory is read over the bus: a chunk of 512 tokens is then
// 4 MB, and the bus is the limit.

#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace adept::cuda {
namespace {

constexpr int kThreads = 256;

// For rows that are whole, aligned pieces of 16 bytes.
template <class Element>
__global__ void __launch_bounds__(kThreads) embed_vectors(const Embed embed) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.x, hidden = embed.table.cols, pieces = hidden / kVector<Element>;
  const int64_t piece = int64_t{blockIdx.y} * kThreads + threadIdx.x, id = embed.ids[token];
  if (piece >= pieces) return;
  uint4 bits = {0, 0, 0, 0};
  if (in_range(id, embed.table.rows)) {
    bits = load_once(static_cast<const uint4*>(embed.table.values) + id * pieces + piece);
  }
  float values[kVector<Element>];
  widen<Element>(bits, values);
  auto* to = reinterpret_cast<float4*>(embed.out + token * hidden + piece * kVector<Element>);
#pragma unroll
  for (int i = 0; i < kVector<Element> / 4; ++i) {
    to[i] = make_float4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
  }
}

// For any other rows, element by element.
template <class Element>
__global__ void __launch_bounds__(kThreads) embed_elements(const Embed embed) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t token = blockIdx.x, hidden = embed.table.cols;
  const int64_t column = int64_t{blockIdx.y} * kThreads + threadIdx.x, id = embed.ids[token];
  if (column >= hidden) return;
  const auto* table = static_cast<const Element*>(embed.table.values);
  const bool exists = in_range(id, embed.table.rows);
  embed.out[token * hidden + column] = exists ? static_cast<float>(table[id * hidden + column]) : 0;
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0; }

template <class Element>
cudaError_t embed_of(const Embed& embed, cudaStream_t stream) {
  const int64_t hidden = embed.table.cols;
  const bool whole = hidden % kVector<Element> == 0 && aligned(embed.table.values) && aligned(embed.out);
  const int64_t items = whole ? hidden / kVector<Element> : hidden;
  if (!fits_grid(embed.tokens, (items + kThreads - 1) / kThreads)) return cudaErrorInvalidValue;
  const Shape shape{dim3(static_cast<unsigned>(embed.tokens), static_cast<unsigned>((items + kThreads - 1) / kThreads)),
                    dim3(kThreads)};
  return launch(stream, shape, whole ? embed_vectors<Element> : embed_elements<Element>, embed);
}

}  // namespace

cudaError_t embed(const Embed& embed, cudaStream_t stream) {
  if (embed.tokens == 0 || embed.table.cols == 0) return cudaSuccess;
  switch (embed.table.format) {
    case Format::kFloat16: return embed_of<__half>(embed, stream);
    case Format::kBFloat16: return embed_of<__nv_bfloat16>(embed, stream);
    case Format::kFloat32: return embed_of<float>(embed, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace adept::cuda
