// Launches of the sparse down-projection; sparse_down_proj.cuh has the kernel, its layout, lower bound and limit.
#include "cuda/sparse_down_proj.cuh"

#include "cuda/launch.cuh"
#include "cuda/strips.cuh"

namespace adept::cuda {
namespace {

constexpr int kAddThreads = kAddWarps * kWarpSize, kAddedColumns = 4 * kWarpSize;

// out = x + bias + the sum of all shares, times the columns' scales in 8 bits. A warp adds four shares in order, and
// one adds the warps in order: what limits this kernel is how long a load takes, and all of them are in flight at once.
__global__ void __launch_bounds__(kAddThreads)
    add_partials(const SparseDownProj proj, const float* partials, int shares) {
  __shared__ float4 handed[kAddWarps][kWarpSize];
  const int64_t hidden = proj.w.cols, token = blockIdx.y;
  const int64_t col = int64_t{blockIdx.x} * kAddedColumns + 4 * lane_index();
  const bool is_last = warp_index() == 0 && col < hidden;
  float4 x, bias, scale = {1, 1, 1, 1};
  if (is_last) bias = four(proj.bias + col);
  if (is_last && (proj.w.format == Format::kInt8 || proj.w.format == Format::kFloat8))
    scale = four(static_cast<const float*>(proj.w.scales) + col);
  pdl_wait();
  pdl_launch_dependents();
  if (is_last) x = four(proj.x + token * hidden + col);
  float4 sum = sum_of_shares(proj, partials, shares, token, col);
  handed[warp_index()][lane_index()] = sum;
  __syncthreads();
  if (!is_last) return;
#pragma unroll
  for (int warp = 1; warp < kAddWarps; ++warp) add(sum, handed[warp][lane_index()]);
  *reinterpret_cast<float4*>(proj.out + token * hidden + col) = with_residual(x, sum, scale, bias);
}

template <Format kFormat, int kTokens>
cudaError_t multiply_tokens(const SparseDownProj& proj, float* partials, cudaStream_t stream) {
  constexpr size_t kShared = kDownProjWarps<kTokens> * sizeof(SharedOfWarp<kFormat, kTokens>);
  if (const cudaError_t error = allow_shared_bytes(multiply_active_rows<kFormat, kTokens>, kShared)) return error;
  const dim3 blocks(static_cast<unsigned>(blocks_of(proj.w.cols, kStripCols<kFormat, kTokens>)),
                    static_cast<unsigned>(shares_of(proj.w.rows)));
  const Shape shape = {blocks, kDownProjThreads<kTokens>, kShared};
  return launch(stream, shape, multiply_active_rows<kFormat, kTokens>, proj,
                static_cast<int>(neurons_of_part(proj.w.rows)), partials);
}

template <Format kFormat, int kTokens>
cudaError_t multiply_strip_units(const SparseDownProj& proj, float* partials, cudaStream_t stream) {
  int count = 0;
  if (const cudaError_t error = multiprocessors(&count)) return error;
  const auto kernel = multiply_strips<kFormat, kTokens>;
  const int slots = static_cast<int>(blocks_of(RowSlots<kFormat, kTokens>::kBytesOfTeam, 128) * 128);
  const auto shared = static_cast<size_t>(slots + kDownWorkBytes<kFormat, kTokens>);
  if (const cudaError_t error = allow_ring_bytes(kernel, shared)) return error;
  const Shape shape = {static_cast<unsigned>(count), kTeamThreads, shared};
  return launch(stream, shape, kernel, proj, static_cast<int>(neurons_of_part(proj.w.rows)), partials, slots);
}

template <Format kFormat>
cudaError_t multiply_in_strips(const SparseDownProj& proj, float* partials, cudaStream_t stream) {
  if (proj.tokens == 1) return multiply_strip_units<kFormat, 1>(proj, partials, stream);
  if (proj.tokens <= 4) return multiply_strip_units<kFormat, 4>(proj, partials, stream);
  return multiply_strip_units<kFormat, 16>(proj, partials, stream);
}

template <Format kFormat>
cudaError_t multiply_in(const SparseDownProj& proj, float* partials, cudaStream_t stream) {
  if (proj.w.in_tiles) return multiply_in_strips<kFormat>(proj, partials, stream);
  // From 5 tokens on a lane loads at most 8 bytes in 8 bits, as it must where rows are no multiple of 16.
  const bool is_wide = Weights<kFormat>::kBits != 8 || proj.w.cols % 16 == 0;
  if (is_wide && proj.tokens == 1) return multiply_tokens<kFormat, 1>(proj, partials, stream);
  if (is_wide && proj.tokens == 2) return multiply_tokens<kFormat, 2>(proj, partials, stream);
  if (is_wide && proj.tokens <= 4) return multiply_tokens<kFormat, 4>(proj, partials, stream);
  if (proj.tokens <= 8) return multiply_tokens<kFormat, 8>(proj, partials, stream);
  return multiply_tokens<kFormat, 16>(proj, partials, stream);
}

cudaError_t multiply(const SparseDownProj& proj, float* partials, cudaStream_t stream) {
  switch (proj.w.format) {
    case Format::kFloat16: return multiply_in<Format::kFloat16>(proj, partials, stream);
    case Format::kBFloat16: return multiply_in<Format::kBFloat16>(proj, partials, stream);
    case Format::kInt8: return multiply_in<Format::kInt8>(proj, partials, stream);
    case Format::kFloat8: return multiply_in<Format::kFloat8>(proj, partials, stream);
    case Format::kInt4G32: return multiply_in<Format::kInt4G32>(proj, partials, stream);
    case Format::kInt4G128: return multiply_in<Format::kInt4G128>(proj, partials, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t sparse_down_proj(const SparseDownProj& proj, void* workspace, cudaStream_t stream) {
  const int shares = static_cast<int>(shares_of(proj.w.rows));
  float* const partials = static_cast<float*>(workspace);
  if (shares > 0)
    if (const cudaError_t error = multiply(proj, partials, stream)) return error;
  if (proj.strip_counters != nullptr) return cudaSuccess;
  const Shape shape = {
      dim3(static_cast<unsigned>(blocks_of(proj.w.cols, kAddedColumns)), static_cast<unsigned>(proj.tokens)),
      kAddThreads};
  return launch(stream, shape, add_partials, proj, static_cast<const float*>(partials), shares);
}

}  // namespace adept::cuda
