// prepare_rows: the inputs of a GEMM: LayerNorm, each token times a power of two, rounded to 16 bits.
// activate_rows: the inputs of the down-projection, from the product of the up-projection: relu² in place of LayerNorm.
//
// Layout: a block has a token, whose floats stay in registers: thread t has 4 neighbouring columns from 4 (t + 512 j)
// on. So memory is read once, whatever the number of passes (mean, variance, maximum). Lower bound: 512 tokens of the
// 8B are 8 MB in and 4 MB out, 512 tokens' activations 17 MB in and 17 MB out: 3 and 7 us at 4.8 TB/s. Limit for few
// tokens: the launch, one load and three barriers; for many, memory.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/product_rows.cuh"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMaxQuads = 16;  // of a thread
static_assert(kMaxPreparedCols == kMaxQuads * kThreads * kQuad);

// A thread's columns of a token.
template <int kQuads>
struct Row {
  float4 quads[kQuads];
  int cols;

  __device__ static int column(int i) { return (static_cast<int>(threadIdx.x) + i * kThreads) * kQuad; }

  // Columns past the end keep zeros.
  template <class Function>
  __device__ __forceinline__ void each(Function function) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i)
      if (column(i) < cols) function(quads[i], column(i));
  }
};

__device__ __forceinline__ float sum(const float4& v) { return v.x + v.y + v.z + v.w; }

template <int kQuads>
__device__ __forceinline__ void normalize(Row<kQuads>& row, const Norm& norm, float* scratch) {
  float total = 0, squares = 0;
  row.each([&](const float4& v, int) { total += sum(v); });
  const float mean = team_sum<WholeBlock>(total, scratch) / static_cast<float>(row.cols);
  row.each([&](const float4& v, int) { squares += sum(map(v, [mean](float a) { return (a - mean) * (a - mean); })); });
  const float scale = rsqrtf(team_sum<WholeBlock>(squares, scratch) / static_cast<float>(row.cols) + norm.eps);
  row.each([&](float4& v, int col) {
    v = map(v, [=](float a) { return (a - mean) * scale; });
    v = map(map(v, load_quad(norm.gamma + col), times), load_quad(norm.beta + col), plus);
  });
}

// In float32 the power is 1.
template <Format kOut, int kQuads>
__device__ __forceinline__ void store(Row<kQuads>& row, const PreparedRows& to, float* scratch) {
  PowerOfTwo power = {1, 1};
  if constexpr (kOut != Format::kFloat32) {
    float largest = 0;
    row.each([&](const float4& v, int) {
      largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    });
    power = power_above(team_max<WholeBlock>(largest, scratch), to.raised);
  }
  const int64_t token = blockIdx.x;
  row.each([&](const float4& v, int col) {
    store_quad<kOut>(to.values, token * row.cols + col, map(v, [power](float a) { return a * power.inverse; }));
  });
  if (threadIdx.x == 0) to.powers[token] = power.value;
}

// The rows behind the tokens'.
template <Format kOut, int kQuads>
__device__ __forceinline__ bool store_padding(Row<kQuads>& row, const PreparedRows& to) {
  if (blockIdx.x < to.tokens) return false;
  row.each([&](const float4&, int col) { store_quad<kOut>(to.values, int64_t{blockIdx.x} * row.cols + col, {}); });
  return true;
}

template <Format kOut, int kQuads>
__global__ void __launch_bounds__(kThreads) prepare_token(const float* x, const Norm norm, const PreparedRows to) {
  __shared__ float scratch[kThreads / kWarpSize];
  pdl_launch_dependents();
  pdl_wait();
  Row<kQuads> row = {{}, static_cast<int>(to.cols)};
  if (store_padding<kOut>(row, to)) return;
  row.each([&](float4& v, int col) { v = load_quad(x + int64_t{blockIdx.x} * to.cols + col); });
  if (norm.gamma != nullptr) normalize(row, norm, scratch);
  store<kOut>(row, to, scratch);
}

template <Format kFormat, int kQuads>
__global__ void __launch_bounds__(kThreads) activate_token(const Product product, const PreparedRows to) {
  __shared__ float scratch[kThreads / kWarpSize];
  pdl_launch_dependents();
  pdl_wait();
  Row<kQuads> row = {{}, static_cast<int>(to.cols)};
  if (store_padding<kFormat>(row, to)) return;
  const float power = product.powers[blockIdx.x];
  row.each([&](float4& v, int col) { v = load_quad<kFormat>(product.values, int64_t{blockIdx.x} * to.cols + col); });
  row.each([&](float4& v, int col) { v = map(finish_quad(product, v, power, col), relu_squared); });
  store<kFormat>(row, to, scratch);
}

Shape shape_of(const PreparedRows& to) { return {static_cast<unsigned>(to.rows), kThreads}; }

bool is_aligned(const void* pointer, size_t bytes = 16) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Calls with the number of quads that a thread needs, or returns an error.
template <class Function>
cudaError_t with_quads(const PreparedRows& to, Function function) {
  if (to.cols % kQuad != 0 || !fits_grid(to.rows)) return cudaErrorInvalidValue;
  if (!is_aligned(to.values)) return cudaErrorMisalignedAddress;
  const int64_t quads = blocks_of(to.cols, kThreads * kQuad);
  if (quads <= 2) return function(std::integral_constant<int, 2>());
  if (quads <= 4) return function(std::integral_constant<int, 4>());
  if (quads <= 8) return function(std::integral_constant<int, 8>());
  if (quads <= kMaxQuads) return function(std::integral_constant<int, kMaxQuads>());
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t prepare_rows(const float* x, const Norm& norm, const PreparedRows& to, cudaStream_t stream) {
  if (to.rows == 0 || to.cols == 0) return cudaSuccess;
  if (!is_aligned(x) || !is_aligned(norm.gamma) || !is_aligned(norm.beta)) return cudaErrorMisalignedAddress;
  return with_quads(to, [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value;
    switch (to.format) {
      case Format::kFloat16: return launch(stream, shape_of(to), prepare_token<Format::kFloat16, kQuads>, x, norm, to);
      case Format::kBFloat16:
        return launch(stream, shape_of(to), prepare_token<Format::kBFloat16, kQuads>, x, norm, to);
      case Format::kFloat32: return launch(stream, shape_of(to), prepare_token<Format::kFloat32, kQuads>, x, norm, to);
      default: return cudaErrorInvalidValue;
    }
  });
}

cudaError_t activate_rows(const Product& product, const PreparedRows& to, cudaStream_t stream) {
  if (to.rows == 0 || to.cols == 0) return cudaSuccess;
  if (!is_aligned(product.values, 8) || !is_aligned(product.scales) || !is_aligned(product.bias))
    return cudaErrorMisalignedAddress;
  return with_quads(to, [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value;
    switch (to.format) {
      case Format::kFloat16: return launch(stream, shape_of(to), activate_token<Format::kFloat16, kQuads>, product, to);
      case Format::kBFloat16:
        return launch(stream, shape_of(to), activate_token<Format::kBFloat16, kQuads>, product, to);
      default: return cudaErrorInvalidValue;
    }
  });
}

}  // namespace adept::cuda
