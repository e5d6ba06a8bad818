// Launches of the sparse down-projection; sparse_down_proj.cuh has the kernel, its layout, lower bound and limit.
#include "cuda/sparse_down_proj.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

namespace adept::cuda {
namespace {

constexpr unsigned kAddThreads = 128;
constexpr int kAddedAtOnce = 4;  // columns of a thread
constexpr int64_t kMinNeuronsOfShare = 64;

// out = x + bias + the sum of all shares, times the columns' scales in 8 bits. One block also counts the neurons.
__global__ void __launch_bounds__(kAddThreads)
    add_partials(const SparseDownProj proj, const float* partials, int shares) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t hidden = proj.w.cols, token = blockIdx.y;
  const int64_t col = (int64_t{blockIdx.x} * kAddThreads + threadIdx.x) * kAddedAtOnce;
  if (col < hidden) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll 8
    for (int share = 0; share < shares; ++share) {
      const float4 part = *reinterpret_cast<const float4*>(partials + (share * proj.tokens + token) * hidden + col);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    if (proj.w.format == Format::kInt8 || proj.w.format == Format::kFloat8) {
      const float4 scale = *reinterpret_cast<const float4*>(static_cast<const float*>(proj.w.scales) + col);
      sum.x *= scale.x, sum.y *= scale.y, sum.z *= scale.z, sum.w *= scale.w;
    }
    const float4 bias = *reinterpret_cast<const float4*>(proj.bias + col);
    const float4 x = *reinterpret_cast<const float4*>(proj.x + token * hidden + col);
    *reinterpret_cast<float4*>(proj.out + token * hidden + col) = {x.x + sum.x + bias.x, x.y + sum.y + bias.y,
                                                                   x.z + sum.z + bias.z, x.w + sum.w + bias.w};
  }
  if (proj.counts == nullptr || blockIdx.x != 0 || blockIdx.y != 0 || warp_index() != 0) return;
  int active = 0;
  for (int word = lane_index(); word * 32 < proj.w.rows; word += kWarpSize) active += __popc(proj.active[word]);
  active = warp_sum(active);
  if (lane_index() != 0) return;
  // Unsigned, so that past 2^63 - 1 the sum wraps around as torch's does: the host cannot check these values.
  auto* const counts = reinterpret_cast<uint64_t*>(proj.counts);
  counts[0] += static_cast<uint64_t>(active);
  counts[1] += static_cast<uint64_t>(proj.w.rows);
}

struct Grid {
  int strips;
  int shares;
};

// One block for each multiprocessor: the list has as many shares as that leaves for each strip of columns.
cudaError_t choose_grid(const SparseDownProj& proj, Grid* grid) {
  int count = 0;
  const cudaError_t error = multiprocessors(&count);
  const int64_t strips = (proj.w.cols + kStripCols - 1) / kStripCols;
  const int64_t max_shares = std::max<int64_t>(1, proj.w.rows / kMinNeuronsOfShare);
  *grid = {static_cast<int>(strips),
           static_cast<int>(std::clamp<int64_t>(std::min(count, kMaxMultiprocessors) / strips, 1, max_shares))};
  return error;
}

template <Format kFormat, int kTokenTiles>
cudaError_t multiply_tokens(const SparseDownProj& proj, const Grid& grid, float* partials, cudaStream_t stream) {
  const size_t shared = std::max(list_bytes(proj.tokens), handed_bytes<kFormat>(kTokenTiles));
  if (const cudaError_t error = allow_shared_bytes(multiply_active_rows<kFormat, kTokenTiles>, shared)) return error;
  const dim3 blocks(static_cast<unsigned>(grid.strips), static_cast<unsigned>(grid.shares));
  const Shape shape = {blocks, kDownProjThreads<kFormat>, shared};
  return launch(stream, shape, multiply_active_rows<kFormat, kTokenTiles>, proj, partials);
}

template <Format kFormat>
cudaError_t multiply_in(const SparseDownProj& proj, const Grid& grid, float* partials, cudaStream_t stream) {
  return proj.tokens <= kTokensAcross ? multiply_tokens<kFormat, 1>(proj, grid, partials, stream)
                                      : multiply_tokens<kFormat, 2>(proj, grid, partials, stream);
}

cudaError_t multiply(const SparseDownProj& proj, const Grid& grid, float* partials, cudaStream_t stream) {
  switch (proj.w.format) {
    case Format::kFloat16: return multiply_in<Format::kFloat16>(proj, grid, partials, stream);
    case Format::kBFloat16: return multiply_in<Format::kBFloat16>(proj, grid, partials, stream);
    case Format::kInt8: return multiply_in<Format::kInt8>(proj, grid, partials, stream);
    case Format::kFloat8: return multiply_in<Format::kFloat8>(proj, grid, partials, stream);
    case Format::kInt4G32: return multiply_in<Format::kInt4G32>(proj, grid, partials, stream);
    case Format::kInt4G128: return multiply_in<Format::kInt4G128>(proj, grid, partials, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

int64_t sparse_down_proj_workspace_bytes(const SparseDownProj& proj) {
  Grid grid = {};
  if (choose_grid(proj, &grid) != cudaSuccess) return 0;  // sparse_down_proj will report it
  return grid.shares * proj.tokens * proj.w.cols * static_cast<int64_t>(sizeof(float));
}

cudaError_t sparse_down_proj(const SparseDownProj& proj, void* workspace, cudaStream_t stream) {
  Grid grid = {};
  if (const cudaError_t error = choose_grid(proj, &grid)) return error;
  float* const partials = static_cast<float*>(workspace);
  if (const cudaError_t error = multiply(proj, grid, partials, stream)) return error;
  const int64_t columns = kAddThreads * kAddedAtOnce;
  const Shape shape = {
      dim3(static_cast<unsigned>((proj.w.cols + columns - 1) / columns), static_cast<unsigned>(proj.tokens)),
      kAddThreads};
  return launch(stream, shape, add_partials, proj, static_cast<const float*>(partials), grid.shares);
}

}  // namespace adept::cuda
