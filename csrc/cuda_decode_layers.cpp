// The binding of decode_layers: the layers of a step whose matrices are in tiles.
#include "cuda/decode_layers.h"

#include "cuda/kernels.h"
#include "cuda/torch_arguments.h"
#include "cuda_ops.h"
#include "gpu_matrices.h"
#include "layer_tensors.h"

namespace adept::cuda_ops {
namespace {

// Checks the tensors of a layer against the sizes of the first one.
class LayerReader {
 public:
  LayerReader(const Tensor* t, int64_t hidden, int64_t head_dim) : t_(t), hidden_(hidden), head_dim_(head_dim) {}

  cuda::LayerPointers read(int64_t intermediate) {
    using namespace layer_tensor;
    cuda::LayerPointers to = {};
    to.input_gamma = vector("input_gamma", t_[input_gamma], hidden_);
    to.input_beta = vector("input_beta", t_[input_beta], hidden_);
    matrix("w_qkv", Layout::kTiled, w_qkv, qkv_scales, 3 * hidden_, &to.w_qkv, &to.qkv_scales);
    to.b_qkv = vector("b_qkv", t_[b_qkv], 3 * hidden_);
    const Norm q = optional_norm("q_", optional(q_gamma), optional(q_beta), 0, head_dim_);
    const Norm k = optional_norm("k_", optional(k_gamma), optional(k_beta), 0, head_dim_);
    to.q_gamma = q.gamma, to.q_beta = q.beta, to.k_gamma = k.gamma, to.k_beta = k.beta;
    matrix("w_dense", Layout::kTiled, w_dense, dense_scales, hidden_, &to.w_dense, &to.dense_scales);
    to.b_dense = vector("b_dense", t_[b_dense], hidden_);
    to.mlp_gamma = vector("mlp_gamma", t_[mlp_gamma], hidden_);
    to.mlp_beta = vector("mlp_beta", t_[mlp_beta], hidden_);
    matrix("w_up", Layout::kTiled, w_up, up_scales, intermediate, &to.w_up, &to.up_scales);
    to.b_up = vector("b_up", t_[b_up], intermediate);
    matrix("w_down_t", Layout::kTransposed, w_down_t, down_scales, intermediate, &to.w_down, &to.down_scales);
    to.b_down = vector("b_down", t_[b_down], hidden_);
    return to;
  }

  // Of the matrices so far.
  Format format() const { return *format_; }
  void expect(Format format) { format_ = format; }

 private:
  OptionalTensor optional(size_t i) const { return t_[i].numel() ? OptionalTensor(t_[i]) : std::nullopt; }

  void matrix(const char* name, Layout layout, size_t values, size_t scales, int64_t rows, const void** to,
              const void** to_scales) {
    check_matrix_sizes(name, rows, hidden_);
    ADEPT_REQUIRE(t_[values].dim() == 3, name, " has shape ", shape_of(t_[values]), "; expected tiles");
    const Matrix found = matrix_in_tiles(name, layout, t_[values], optional(scales), rows, hidden_);
    aligned(name, found.values, 16);
    ADEPT_REQUIRE(!format_ || *format_ == found.format, name, " has another format than the matrices before it");
    format_ = found.format;
    *to = found.values;
    *to_scales = found.scales;
  }

  const Tensor* t_;
  int64_t hidden_, head_dim_;
  std::optional<Format> format_;
};

void read_layers(const std::vector<Tensor>& layers, const CacheLayer& cache, cuda::DecodeLayers& op) {
  constexpr size_t kTensors = layer_tensor::kCount;
  op.intermediate = layers[layer_tensor::b_up].numel();
  for (int i = 0; i < op.layer_count; ++i) {
    LayerReader reader(&layers[size_t(i) * kTensors], op.hidden, cache.head_dim);
    if (i > 0) reader.expect(op.format);
    op.layers[i] = reader.read(op.intermediate);
    op.format = reader.format();
  }
}

void check_cache(const Tensor& cache, const std::vector<Tensor>& layers) {
  constexpr size_t kTensors = layer_tensor::kCount;
  ADEPT_REQUIRE(cache.dim() == 6 && cache.size(0) > 0 && layers.size() == size_t(cache.size(0)) * kTensors,
                "layers has ", layers.size(), " tensors and the cache shape ", shape_of(cache), "; expected ", kTensors,
                " for each of its layers");
  ADEPT_REQUIRE(cache.size(0) <= cuda::kMaxLayers, "the cache has ", cache.size(0), " layers; expected at most ",
                cuda::kMaxLayers);
  ADEPT_REQUIRE(cache.is_contiguous(), "cache is not contiguous");
}

Tensor decode_layers(const Tensor& x, const Tensor& slots, const Tensor& positions, int64_t longest,
                     std::vector<Tensor> layers, const Tensor& cos, const Tensor& sin, Tensor cache, double eps,
                     double scale, const OptionalTensor& counts, Tensor counters, bool one_kernel) {
  const Operands read = {{"x", x}, {"slots", slots}, {"positions", positions}, {"cos", cos}, {"sin", sin}};
  const OnOneDevice device({"x", x}, read, {{"cache", cache}, {"counts", counts}, {"counters", counters}});
  const Written written({{"cache", cache}, {"counts", counts}, {"counters", counters}});
  written.check_apart(read);
  for (const Tensor& tensor : layers) written.check_apart("layers", tensor);
  check_cache(cache, layers);
  const CacheLayer layer = cache_layer(torch::stable::select(cache, 0, 0));
  cuda::DecodeLayers op = {};
  op.hidden = layer.heads * layer.head_dim;
  const TokenInputs in("x", x, op.hidden);
  op.x = in.at();
  op.tokens = in.tokens();
  ADEPT_REQUIRE(op.tokens <= cuda::kMaxTokens, "x has ", op.tokens, " tokens; expected at most ", cuda::kMaxTokens);
  ADEPT_REQUIRE(layer.format != Format::kFloat32, "cache has dtype float32; expected float16 or bfloat16");
  ADEPT_REQUIRE(layer.head_dim % 8 == 0 && layer.head_dim <= 256, "the cache has heads of ", layer.head_dim,
                " dimensions; expected a multiple of 8 up to 256");
  ADEPT_REQUIRE(longest > 0 && longest <= layer.capacity, "longest is ", longest, "; expected 1 to ", layer.capacity);
  const RotaryTables tables(cos, sin, layer.head_dim);
  ADEPT_REQUIRE(tables.positions >= layer.capacity, "cos has shape [", tables.positions, ", ", tables.half,
                "]; expected the cache's ", layer.capacity, " positions");
  op.eps = float(eps);
  op.cos = tables.cos, op.sin = tables.sin, op.half = tables.half;
  op.slots = unchecked_indices("slots", slots, op.tokens);
  op.positions = unchecked_indices("positions", positions, op.tokens);
  op.cache = layer;
  op.longest = longest;
  op.scale = float(scale);
  op.neuron_counts = counts_of(counts);
  const int64_t count = cuda::decode_counters(op.tokens, op.hidden, layer.heads);
  check_dtype("counters", counters, ScalarType::Long);
  ADEPT_REQUIRE(counters.numel() >= count && counters.is_contiguous(), "counters has shape ", shape_of(counters),
                "; expected ", count, " or more");
  op.counters = static_cast<uint64_t*>(counters.mutable_data_ptr());
  op.layer_count = int(cache.size(0));
  read_layers(layers, layer, op);
  const char* const refusal = one_kernel ? cuda::refuses_one_kernel(op) : nullptr;
  ADEPT_REQUIRE(refusal == nullptr, "one_kernel is true with ", refusal, "; expected false");
  const Tensor out = in.empty({op.tokens, op.hidden});
  op.out = output(out);
  const Workspace workspace(out, cuda::decode_layers_workspace_bytes(op));
  check(cuda::decode_layers(op, one_kernel, workspace.data(), cuda::current_stream(out)), "decode_layers");
  return in.narrowed(out);
}

}  // namespace

void implement_decode_layers(torch::stable::detail::StableLibrary& library) {
  library.impl("decode_layers", TORCH_BOX(&decode_layers));
}

}  // namespace adept::cuda_ops
