#include "cuda/down.cuh"

#include <algorithm>

#include "cuda/launch.cuh"

namespace adept::cuda {
namespace {

constexpr unsigned kAddThreads = 128;
constexpr int kAddedAtOnce = 4;  // columns of a thread
constexpr int64_t kLeastUnitsOfShare = 64;

// out = x + bias + the sums of all shares, with the scales of columns in 8 bits. One block also counts the units.
__global__ void __launch_bounds__(kAddThreads) add_partials(const Down down, const float* partials, int shares) {
  wait_for_inputs();
  let_next_start();
  const int64_t hidden = down.w.cols, token = blockIdx.y;
  const int64_t col = (int64_t{blockIdx.x} * kAddThreads + threadIdx.x) * kAddedAtOnce;
  if (col < hidden) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll 8
    for (int share = 0; share < shares; ++share) {
      const float4 part = *reinterpret_cast<const float4*>(partials + (share * down.tokens + token) * hidden + col);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    if (down.w.format == Format::kInt8 || down.w.format == Format::kFloat8) {
      const float4 scale = *reinterpret_cast<const float4*>(static_cast<const float*>(down.w.scales) + col);
      sum.x *= scale.x, sum.y *= scale.y, sum.z *= scale.z, sum.w *= scale.w;
    }
    const float4 bias = *reinterpret_cast<const float4*>(down.bias + col);
    const float4 x = *reinterpret_cast<const float4*>(down.x + token * hidden + col);
    *reinterpret_cast<float4*>(down.out + token * hidden + col) = {x.x + sum.x + bias.x, x.y + sum.y + bias.y,
                                                                   x.z + sum.z + bias.z, x.w + sum.w + bias.w};
  }
  if (down.counts == nullptr || blockIdx.x != 0 || blockIdx.y != 0 || warp_index() != 0) return;
  int needed = 0;
  for (int word = lane_index(); word * 32 < down.w.rows; word += kWarpSize) needed += __popc(down.active[word]);
  needed = warp_sum(needed);
  if (lane_index() != 0) return;
  // In unsigned arithmetic, so that the sum of what the host cannot refuse goes on past 2^63 - 1 as torch's does.
  auto* const counts = reinterpret_cast<uint64_t*>(down.counts);
  counts[0] += static_cast<uint64_t>(needed);
  counts[1] += static_cast<uint64_t>(down.w.rows);
}

struct Grid {
  int strips;
  int shares;
};

// A block a multiprocessor: as many shares of the list as the strips of columns leave room for.
cudaError_t choose_grid(const Down& down, Grid* grid) {
  int count = 0;
  const cudaError_t error = multiprocessors(&count);
  const int64_t strips = (down.w.cols + kStripCols - 1) / kStripCols;
  const int64_t most = std::max<int64_t>(1, down.w.rows / kLeastUnitsOfShare);
  *grid = {static_cast<int>(strips),
           static_cast<int>(std::clamp<int64_t>(std::min(count, kMaxMultiprocessors) / strips, 1, most))};
  return error;
}

template <Format kFormat, int kTokenTiles>
cudaError_t multiply_units(const Down& down, const Grid& grid, float* partials, cudaStream_t stream) {
  const size_t shared = std::max(units_bytes(down.tokens), handed_bytes<kFormat>(kTokenTiles));
  if (const cudaError_t error = allow_shared_bytes(multiply_active_rows<kFormat, kTokenTiles>, shared)) return error;
  const dim3 blocks(static_cast<unsigned>(grid.strips), static_cast<unsigned>(grid.shares));
  const Shape shape = {blocks, kDownThreads<kFormat>, shared};
  return launch(stream, shape, multiply_active_rows<kFormat, kTokenTiles>, down, partials);
}

template <Format kFormat>
cudaError_t multiply_in(const Down& down, const Grid& grid, float* partials, cudaStream_t stream) {
  return down.tokens <= kTokensAcross ? multiply_units<kFormat, 1>(down, grid, partials, stream)
                                      : multiply_units<kFormat, 2>(down, grid, partials, stream);
}

cudaError_t multiply(const Down& down, const Grid& grid, float* partials, cudaStream_t stream) {
  switch (down.w.format) {
    case Format::kFloat16: return multiply_in<Format::kFloat16>(down, grid, partials, stream);
    case Format::kBFloat16: return multiply_in<Format::kBFloat16>(down, grid, partials, stream);
    case Format::kInt8: return multiply_in<Format::kInt8>(down, grid, partials, stream);
    case Format::kFloat8: return multiply_in<Format::kFloat8>(down, grid, partials, stream);
    case Format::kInt4Wide: return multiply_in<Format::kInt4Wide>(down, grid, partials, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

int64_t down_workspace_bytes(const Down& down) {
  Grid grid = {};
  if (choose_grid(down, &grid) != cudaSuccess) return 0;  // and so will `down`
  return grid.shares * down.tokens * down.w.cols * static_cast<int64_t>(sizeof(float));
}

cudaError_t down(const Down& down, void* workspace, cudaStream_t stream) {
  Grid grid = {};
  if (const cudaError_t error = choose_grid(down, &grid)) return error;
  float* const partials = static_cast<float*>(workspace);
  if (const cudaError_t error = multiply(down, grid, partials, stream)) return error;
  const int64_t columns = kAddThreads * kAddedAtOnce;
  const Shape shape = {
      dim3(static_cast<unsigned>((down.w.cols + columns - 1) / columns), static_cast<unsigned>(down.tokens)),
      kAddThreads};
  return launch(stream, shape, add_partials, down, static_cast<const float*>(partials), grid.shares);
}

}  // namespace adept::cuda
