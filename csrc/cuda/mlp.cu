// mlp: out = residual + down(relu²(up(LayerNorm(x)))). The down-projection reads only the rows of active neurons.
// linear.cuh and sparse_down_proj.cuh have the two kernels' layouts, lower bounds and limits.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/linear.h"
#include "cuda/sparse_down_proj.h"
#include "cuda/workspace.h"

namespace adept::cuda {
namespace {

// The workspace has the activations, [tokens, intermediate], then what the two halves use one after the other.
int64_t activation_bytes(const Mlp& mlp) {
  constexpr int64_t kAlignment = 256;
  return blocks_of(mlp.tokens * mlp.up.rows * int64_t{sizeof(float)}, kAlignment) * kAlignment;
}

Linear up_projection(const Mlp& mlp, void* workspace) {
  return {mlp.x, mlp.tokens, mlp.norm, mlp.up, mlp.up_bias, nullptr, true, static_cast<float*>(workspace)};
}

}  // namespace

int64_t mlp_workspace_bytes(const Mlp& mlp) {
  return activation_bytes(mlp) + std::max(linear_workspace_bytes(up_projection(mlp, nullptr)),
                                          partials_bytes(mlp.tokens, mlp.up.rows, mlp.down.cols));
}

cudaError_t mlp(const Mlp& mlp, void* workspace, cudaStream_t stream) {
  if (mlp.tokens == 0) return cudaSuccess;
  const bool scales_of_outputs = mlp.down.format == Format::kInt8 || mlp.down.format == Format::kFloat8;
  const bool aligned = is_aligned(mlp.down.values) && is_aligned(mlp.down_bias) && is_aligned(mlp.base()) &&
                       is_aligned(mlp.out) && (!scales_of_outputs || is_aligned(mlp.down.scales));
  if (!aligned) return cudaErrorMisalignedAddress;
  void* const shared = static_cast<char*>(workspace) + activation_bytes(mlp);
  if (const cudaError_t error = linear(up_projection(mlp, workspace), shared, stream)) return error;
  const SparseDownProj down = {static_cast<const float*>(workspace),
                               mlp.tokens,
                               mlp.down,
                               mlp.base(),
                               mlp.down_bias,
                               mlp.counts,
                               mlp.slots,
                               mlp.out};
  return sparse_down_proj(down, shared, stream);
}

}  // namespace adept::cuda
