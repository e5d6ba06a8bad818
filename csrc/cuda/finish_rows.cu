// finish_rows: outputs in float32 from the product of a GEMM.
//
// Layout: a block has 4096 columns of a token, a thread four times 4 neighbouring ones; without whole aligned quads,
// four times one. Partial products, of blocks of the inputs, are added in their order. Lower bound: 512 tokens of the
// 8B's qkv are 13 MB in and 25 MB out, 8 us at 4.8 TB/s. Limit for few tokens: the launch and one load; for many,
// memory.

#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/product_rows.cuh"
#include "cuda/ptx.cuh"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 4;  // of a thread

template <Format kFormat>
__global__ void __launch_bounds__(kThreads) finish_quads(const FinishRows finish) {
  pdl_launch_dependents();
  pdl_wait();
  constexpr int kStride = kThreads * kQuad;
  const Product& product = finish.product;
  const int cols = static_cast<int>(product.cols);
  const unsigned segments = (static_cast<unsigned>(cols) + kItems * kStride - 1) / (kItems * kStride);
  const int64_t token = blockIdx.x / segments, row = token * cols;
  const int first = static_cast<int>(blockIdx.x % segments * kItems * kThreads + threadIdx.x) * kQuad;
  const float power = product.powers[token];
  float4 sums[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i)
    if (first + i * kStride < cols) sums[i] = load_quad<kFormat>(product.values, row + first + i * kStride);
  for (int64_t part = 1; part < product.parts; ++part) {
    const int64_t at = part * product.part_size + row + first;
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (first + i * kStride < cols)
        sums[i] = map(sums[i], load_quad<kFormat>(product.values, at + i * kStride), plus);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int col = first + i * kStride;
    if (col >= cols) break;
    float4 v = finish_quad(product, sums[i], power, col);
    if (finish.relu_squared) v = map(v, relu_squared);
    if (finish.residual != nullptr) v = map(v, load_quad(finish.residual + row + col), plus);
    store_quad<Format::kFloat32>(finish.out, row + col, v);
  }
}

template <class Element>
__global__ void __launch_bounds__(kThreads) finish_elements(const FinishRows finish) {
  pdl_launch_dependents();
  pdl_wait();
  const Product& product = finish.product;
  const int cols = static_cast<int>(product.cols);
  const unsigned segments = (static_cast<unsigned>(cols) + kItems * kThreads - 1) / (kItems * kThreads);
  const int64_t token = blockIdx.x / segments, row = token * cols;
  const float power = product.powers[token];
  const auto* values = static_cast<const Element*>(product.values);
  for (int i = 0; i < kItems; ++i) {
    const int col = static_cast<int>((blockIdx.x % segments * kItems + i) * kThreads + threadIdx.x);
    if (col >= cols) break;
    float v = static_cast<float>(values[row + col]);
    for (int64_t part = 1; part < product.parts; ++part)
      v += static_cast<float>(values[part * product.part_size + row + col]);
    if (product.scales != nullptr) v *= product.scales[col];
    v *= power;
    if (product.bias != nullptr) v += product.bias[col];
    if (finish.relu_squared) v = relu_squared(v);
    if (finish.residual != nullptr) v += finish.residual[row + col];
    finish.out[row + col] = v;
  }
}

bool is_aligned(const void* pointer, size_t bytes = 16) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <Format kFormat, class Element>
cudaError_t finish_as(const FinishRows& finish, cudaStream_t stream) {
  const Product& product = finish.product;
  const bool whole = product.cols % kQuad == 0 && is_aligned(product.values) && is_aligned(product.scales) &&
                     is_aligned(product.bias) && is_aligned(finish.residual);
  const int64_t blocks = product.tokens * blocks_of(product.cols, int64_t{kItems} * kThreads * (whole ? kQuad : 1));
  if (!fits_grid(blocks)) return cudaErrorInvalidValue;
  const Shape shape = {static_cast<unsigned>(blocks), kThreads};
  return launch(stream, shape, whole ? finish_quads<kFormat> : finish_elements<Element>, finish);
}

}  // namespace

cudaError_t finish_rows(const FinishRows& finish, cudaStream_t stream) {
  if (finish.product.tokens == 0 || finish.product.cols == 0) return cudaSuccess;
  switch (finish.product.format) {
    case Format::kFloat16: return finish_as<Format::kFloat16, __half>(finish, stream);
    case Format::kBFloat16: return finish_as<Format::kBFloat16, __nv_bfloat16>(finish, stream);
    case Format::kFloat32: return finish_as<Format::kFloat32, float>(finish, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace adept::cuda
