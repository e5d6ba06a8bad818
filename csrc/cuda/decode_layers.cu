// decode_layers: plans shared memory and launches one kernel for all layers, or four for each; layer_kernels.cuh has
// the kernels, their layouts, lower bounds and limits.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layer_kernels.cuh"

namespace adept::cuda {
namespace {

constexpr int kMaxStages = 8, kMinStages = 2;
constexpr int kAlignment = 128;
constexpr int64_t kMaxTokensOfOneKernel = kTokensOfTile;

constexpr int aligned_up(int bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The parts of the workspace, each aligned to 256.
class Workspace {
 public:
  explicit Workspace(void* memory) : begin_(static_cast<char*>(memory)) {}

  float* floats(int64_t count) {
    float* const at = reinterpret_cast<float*>(begin_ + bytes_);
    bytes_ += blocks_of(count * int64_t{sizeof(float)}, 256) * 256;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

struct Plan {
  LayerBuffers buffers;
  void* linear;  // workspace of a product
  int64_t bytes;

  Plan(const DecodeLayers& op, void* memory) {
    Workspace workspace(memory);
    const int64_t tokens = op.tokens, heads = op.cache.heads;
    buffers.qkv = workspace.floats(tokens * 3 * op.hidden);
    buffers.attended = workspace.floats(tokens * op.hidden);
    buffers.y = workspace.floats(tokens * op.hidden);
    buffers.activations = workspace.floats(tokens * op.intermediate);
    buffers.partials = workspace.floats(partials_bytes(tokens, op.intermediate, op.hidden) / 4);
    const int64_t splits = attention::splits_of(op.longest);
    buffers.splits.sums = workspace.floats(tokens * heads * splits * op.cache.head_dim);
    buffers.splits.softmax = reinterpret_cast<float2*>(workspace.floats(tokens * heads * splits * 2));
    linear = workspace.floats(prepared_inputs_bytes(tokens, op.hidden) / 4);
    bytes = workspace.bytes();
  }
};

template <Format kFormat>
constexpr int kStage = kStageBytes<kFormat> + Ring::kBarrierBytes;

// The MLP's: the slots lie where the ring is.
template <Format kFormat, int kTokens>
LayerShared mlp_shared(const DecodeLayers& op, size_t beside_another, size_t room) {
  using Work = WorkBytes<kFormat>;
  const int work = std::max(Work::product(op.tokens, op.hidden), kDownWorkBytes<kFormat, kTokens>);
  const int slots = aligned_up(RowSlots<kFormat, kTokens>::kBytesOfTeam);
  const auto stages_in = [&](size_t bytes) { return (static_cast<int>(bytes) - work - kAlignment) / kStage<kFormat>; };
  int stages = stages_in(beside_another);
  if (stages < 4 || stages * kStage<kFormat> < slots) stages = stages_in(room);
  stages = std::min(stages, kMaxStages);
  const int work_at = std::max(aligned_up(stages * kStage<kFormat>), slots);
  return {stages, 0, work_at, work_at + work};
}

// The one kernel's: ring, slots and work side by side.
template <Format kFormat, int kTokens>
LayerShared step_shared(const DecodeLayers& op, size_t room) {
  using Work = WorkBytes<kFormat>;
  const int work = std::max({Work::product(op.tokens, op.hidden), kDownWorkBytes<kFormat, kTokens>,
                             Work::attention(op.tokens, op.cache.head_dim)});
  const int slots = aligned_up(RowSlots<kFormat, kTokens>::kBytesOfTeam);
  const int left = static_cast<int>(room) - work - slots - kAlignment;
  const int stages = std::min(left / kStage<kFormat>, kMaxStages);
  const int slots_at = aligned_up(stages * kStage<kFormat>);
  return {stages, slots_at, slots_at + slots, slots_at + slots + work};
}

template <class Element, int kLanes>
cudaError_t attend(const AppendAttention& op, const LayerBuffers& buffers, cudaStream_t stream) {
  const auto kernel = attend_heads<Element, kLanes>;
  const CacheLayer& cache = op.append.cache;
  const int64_t splits = std::max<int64_t>(attention::splits_of(op.attention.longest), 1);
  const auto shared =
      static_cast<size_t>(sizeof(attention::AppendShared) + op.append.tokens * 2 * cache.head_dim * sizeof(Element));
  if (const cudaError_t error = allow_shared_bytes(kernel, shared)) return error;
  const Shape shape = {
      dim3(static_cast<unsigned>(splits), static_cast<unsigned>(cache.heads), static_cast<unsigned>(op.append.tokens)),
      kTeamThreads, shared};
  return launch(stream, shape, kernel, op, buffers.splits, splits);
}

// With the fewest lanes that can read a position at once.
template <class Element>
cudaError_t attend_in(const AppendAttention& op, const LayerBuffers& buffers, cudaStream_t stream) {
  const int64_t chunks = op.append.cache.head_dim / kVector<Element>;
  if (chunks <= 8) return attend<Element, 8>(op, buffers, stream);
  if (chunks <= 16) return attend<Element, 16>(op, buffers, stream);
  return attend<Element, 32>(op, buffers, stream);
}

cudaError_t attend(const AppendAttention& op, const LayerBuffers& buffers, cudaStream_t stream) {
  return op.append.cache.format == Format::kFloat16 ? attend_in<__half>(op, buffers, stream)
                                                    : attend_in<__nv_bfloat16>(op, buffers, stream);
}

template <Format kFormat, int kTokens>
cudaError_t run_mlp(const DecodeLayers& op, const LayerOperands& layer, const Plan& plan, cudaStream_t stream) {
  int count = 0;
  size_t room = 0, beside_another = 0;
  if (const cudaError_t error = multiprocessors(&count)) return error;
  if (const cudaError_t error = max_shared_bytes(&room)) return error;
  if (const cudaError_t error = shared_bytes_beside_another(&beside_another)) return error;
  const auto kernel = multiply_mlp<kFormat, kTokens>;
  const LayerShared shared = mlp_shared<kFormat, kTokens>(op, beside_another, room - kStaticSharedBytes);
  if (shared.stages < kMinStages) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(shared.bytes);
  if (const cudaError_t error = allow_ring_bytes(kernel, bytes)) return error;
  const int part_neurons = static_cast<int>(neurons_of_part(op.intermediate));
  const Shape shape = {static_cast<unsigned>(count), kLayerThreads, bytes};
  return launch(stream, shape, kernel, layer.product(kUp), layer.down(), plan.buffers.partials,
                LayerCounters(op.counters, op.hidden).grid, part_neurons, shared);
}

template <Format kFormat>
cudaError_t run_mlp(const DecodeLayers& op, const LayerOperands& layer, const Plan& plan, cudaStream_t stream) {
  if (op.tokens == 1) return run_mlp<kFormat, 1>(op, layer, plan, stream);
  if (op.tokens <= 4) return run_mlp<kFormat, 4>(op, layer, plan, stream);
  if (op.tokens <= 8) return run_mlp<kFormat, 8>(op, layer, plan, stream);
  if (const cudaError_t error = linear(layer.product(kUp), plan.linear, stream)) return error;
  return sparse_down_proj(layer.down(), plan.buffers.partials, stream);
}

template <Format kFormat>
cudaError_t run_by_operators(const DecodeLayers& op, const Plan& plan, cudaStream_t stream) {
  for (int i = 0; i < op.layer_count; ++i) {
    const LayerOperands layer(op, plan.buffers, i);
    if (const cudaError_t error = linear(layer.product(kQkv), plan.linear, stream)) return error;
    if (const cudaError_t error = attend(layer.attention(), plan.buffers, stream)) return error;
    if (const cudaError_t error = linear(layer.product(kDense), plan.linear, stream)) return error;
    if (const cudaError_t error = run_mlp<kFormat>(op, layer, plan, stream)) return error;
  }
  return cudaSuccess;
}

template <Format kFormat, int kTokens>
cudaError_t run_at_once(const DecodeLayers& op, const Plan& plan, cudaStream_t stream) {
  int count = 0;
  size_t room = 0;
  if (const cudaError_t error = multiprocessors(&count)) return error;
  if (const cudaError_t error = max_shared_bytes(&room)) return error;
  const auto kernel = decode_all<kFormat, kTokens>;
  const LayerShared shared = step_shared<kFormat, kTokens>(op, room - kStaticSharedBytes);
  if (shared.stages < kMinStages) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(shared.bytes);
  if (const cudaError_t error = allow_ring_bytes(kernel, bytes)) return error;
  const Shape shape = {static_cast<unsigned>(count), kLayerThreads, bytes};
  return launch(stream, shape, kernel, op, plan.buffers, static_cast<int>(neurons_of_part(op.intermediate)), shared);
}

template <Format kFormat>
cudaError_t run(const DecodeLayers& op, bool one_kernel, const Plan& plan, cudaStream_t stream) {
  if (!one_kernel) return run_by_operators<kFormat>(op, plan, stream);
  return op.tokens == 1 ? run_at_once<kFormat, 1>(op, plan, stream) : run_at_once<kFormat, 8>(op, plan, stream);
}

}  // namespace

int64_t decode_counters(int64_t tokens, int64_t hidden, int64_t heads) {
  return 1 + LayerCounters::strips_of(hidden) + tokens * heads;
}

const char* refuses_one_kernel(const DecodeLayers& op) {
  if (!is_9_or_newer()) return "a GPU of compute capability below 9.0";
  if (op.tokens > kMaxTokensOfOneKernel) return "more than 8 tokens";
  if (op.cache.head_dim > 64) return "heads of more than 64 dimensions";
  return nullptr;
}

int64_t decode_layers_workspace_bytes(const DecodeLayers& op) { return Plan(op, nullptr).bytes; }

cudaError_t decode_layers(const DecodeLayers& op, bool one_kernel, void* workspace, cudaStream_t stream) {
  if (op.tokens == 0) return cudaSuccess;
  const Plan plan(op, workspace);
  switch (op.format) {
    case Format::kFloat16: return run<Format::kFloat16>(op, one_kernel, plan, stream);
    case Format::kBFloat16: return run<Format::kBFloat16>(op, one_kernel, plan, stream);
    case Format::kInt8: return run<Format::kInt8>(op, one_kernel, plan, stream);
    case Format::kFloat8: return run<Format::kFloat8>(op, one_kernel, plan, stream);
    case Format::kInt4G32: return run<Format::kInt4G32>(op, one_kernel, plan, stream);
    case Format::kInt4G128: return run<Format::kInt4G128>(op, one_kernel, plan, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace adept::cuda
