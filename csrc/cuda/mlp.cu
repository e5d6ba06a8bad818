// out = x + down(relu²(up(LayerNorm(x)))): the up-projection notes which units are not 0, and the down-projection
// reads only their rows.
#include "cuda/down.h"
#include "cuda/kernels.h"
#include "cuda/matmul.h"

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
    float* const units = parts.take<float>(mlp.tokens * intermediate);
    uint16_t* const active = parts.take<uint16_t>(tiles + 1);
    float* const largest = parts.take<float>(mlp.tokens * tiles);
    up = {mlp.x, mlp.tokens, mlp.norm, mlp.up, mlp.up_bias, nullptr, true, units};
    marks = {active, largest, false};
    down = {units,         reinterpret_cast<const uint32_t*>(active),
            largest,       mlp.tokens,
            mlp.down,      mlp.x,
            mlp.down_bias, mlp.counts,
            mlp.out};
    // The two halves run one after the other.
    const int64_t up_bytes = multiply_workspace_bytes(up), down_bytes = down_workspace_bytes(down);
    shared = parts.take<char>(up_bytes > down_bytes ? up_bytes : down_bytes);
  }

  Parts parts;
  Linear up;
  UnitMarks marks;
  Down down;
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
  return down(plan.down, plan.shared, stream);
}

}  // namespace adept::cuda
