// mlp: out = x + down(relu²(up(LayerNorm(x)))). The up-projection marks the active neurons, and the down-projection
// reads only their rows. linear.cuh and sparse_down_proj.cuh have the two kernels' layouts, lower bounds and limits.
#include "cuda/kernels.h"
#include "cuda/linear.h"
#include "cuda/sparse_down_proj.h"

namespace adept::cuda {
namespace {

constexpr int64_t kAlignment = 256;

// The parts of the workspace, one after another.
class Parts {
 public:
  explicit Parts(void* workspace) : begin_(static_cast<char*>(workspace)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + at);
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

struct Plan {
  Plan(const Mlp& mlp, void* workspace) : parts(workspace) {
    const int64_t intermediate = mlp.up.rows, tiles = tiles_of(intermediate);
    float* const activations = parts.take<float>(mlp.tokens * intermediate);
    uint16_t* const active = parts.take<uint16_t>(tiles + 1);
    float* const largest = parts.take<float>(mlp.tokens * tiles);
    up = {mlp.x, mlp.tokens, mlp.norm, mlp.up, mlp.up_bias, nullptr, true, activations};
    marks = {active, largest, false};
    down_proj = {activations,   reinterpret_cast<const uint32_t*>(active),
                 largest,       mlp.tokens,
                 mlp.down,      mlp.x,
                 mlp.down_bias, mlp.counts,
                 mlp.out};
    // The two halves run one after the other.
    const int64_t up_bytes = multiply_workspace_bytes(up), down_bytes = sparse_down_proj_workspace_bytes(down_proj);
    shared = parts.take<char>(up_bytes > down_bytes ? up_bytes : down_bytes);
  }

  Parts parts;
  Linear up;
  ActivationMarks marks;
  SparseDownProj down_proj;
  void* shared;
};

}  // namespace

int64_t mlp_workspace_bytes(const Mlp& mlp) { return Plan(mlp, nullptr).parts.bytes(); }

cudaError_t mlp(const Mlp& mlp, void* workspace, cudaStream_t stream) {
  if (mlp.tokens == 0) return cudaSuccess;
  const bool scales_of_outputs = mlp.down.format == Format::kInt8 || mlp.down.format == Format::kFloat8;
  const bool aligned = is_aligned(mlp.down.values) && is_aligned(mlp.down_bias) && is_aligned(mlp.out) &&
                       (!scales_of_outputs || is_aligned(mlp.down.scales));
  if (!aligned) return cudaErrorMisalignedAddress;
  const Plan plan(mlp, workspace);
  if (const cudaError_t error = multiply(plan.up, plan.marks, plan.shared, stream)) return error;
  return sparse_down_proj(plan.down_proj, plan.shared, stream);
}

}  // namespace adept::cuda
