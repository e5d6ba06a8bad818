// The operators for tensors on an NVIDIA GPU; their schemas stand in schemas.h. Compiled only where there is nvcc.
//
// Positions, lengths and slots live on the device and cannot be looked at here: the kernels leave out a token whose
// slot or position does not exist.
#include "cuda_ops.h"

#include "arguments.h"
#include "cuda/kernels.h"
#include "cuda/torch_device.h"
#include "overlap.h"
#include "update_decode_state.h"

namespace adept::cuda_ops {
namespace {

using cuda::current_stream, cuda::OnDeviceOf;

void check(cudaError_t error, const char* operation) {
  ADEPT_REQUIRE(error == cudaSuccess, operation, ": ", cudaGetErrorString(error));
}

// While it lives, the current device is that of the first operand; no other operand may lie elsewhere.
class OnOneDevice {
 public:
  OnOneDevice(const Operand& first, Operands others, Operands written = {}) : device_(on_a_gpu(first)) {
    check(first, others);
    check(first, written);
  }

 private:
  static const Tensor& on_a_gpu(const Operand& first) {
    check_given(first);
    ADEPT_REQUIRE(cuda::is_beside(*first.tensor, *first.tensor), first.name,
                  " is not on a GPU, where another argument is; expected all on one device");
    return *first.tensor;
  }

  static void check(const Operand& first, Operands others) {
    for (const Operand& other : others) {
      if (other.tensor == nullptr) continue;
      check_given(other);
      ADEPT_REQUIRE(cuda::is_beside(*first.tensor, *other.tensor), other.name, " is not on the device of ", first.name,
                    "; expected all on one");
    }
  }

  // Python's None comes as a tensor that has no device.
  static void check_given(const Operand& operand) {
    ADEPT_REQUIRE(operand.tensor->defined(), operand.name, " is None; expected a tensor");
  }

  OnDeviceOf device_;
};

// Memory that a kernel needs while it runs; torch hands it out again in the order of the stream.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) : memory_(torch::stable::new_empty(like, {bytes}, ScalarType::Byte)) {}

  void* data() const { return memory_.mutable_data_ptr(); }

 private:
  Tensor memory_;
};

// While it lives, a capture that is under way does not end at questions that it might mind, such as about memory.
class RelaxedCapture {
 public:
  RelaxedCapture() { swap(); }
  ~RelaxedCapture() { swap(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void swap() { cudaThreadExchangeStreamCaptureMode(&mode_); }

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Where the device of `like` finds a tensor that may also be in pinned memory of the host.
void* device_address(const char* name, const Tensor& tensor, const Tensor& like) {
  void* const address = const_cast<void*>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return address;
  if (cuda::is_on_device(tensor)) {
    ADEPT_REQUIRE(cuda::is_beside(like, tensor), name, " is on another GPU; expected the one of the other arguments");
    return address;
  }
  const RelaxedCapture relaxed;
  cudaPointerAttributes found = {};
  check(cudaPointerGetAttributes(&found, address), name);
  ADEPT_REQUIRE(found.devicePointer != nullptr, name,
                " is in memory of the host that the GPU cannot reach; expected memory of the GPU, or pinned memory");
  return found.devicePointer;
}

void check_tokens(const Activations& x) {
  ADEPT_REQUIRE(x.tokens() <= cuda::kMostTokens, "x has ", x.tokens(), " tokens; expected at most ", cuda::kMostTokens);
}

// A matrix [rows, cols] in one of the formats of a GPU. `scale_count`: how many outputs have a scale in 8 bits.
Matrix matrix(const char* name, const Tensor& values, const OptionalTensor& scales, int64_t rows, int64_t cols,
              int64_t scale_count) {
  ADEPT_REQUIRE(cols > 0 && cols % cuda::kColsMultiple == 0, name, " has ", cols, " columns; expected a multiple of ",
                cuda::kColsMultiple, " on a GPU");
  ADEPT_REQUIRE(rows <= cuda::kMostRows && cols <= cuda::kMostCols, name, " has ", rows, " rows and ", cols,
                " columns; expected at most ", cuda::kMostRows, " and ", cuda::kMostCols, " on a GPU");
  if (!scales) {
    const Matrix floats = float_matrix(name, values, rows, cols);
    ADEPT_REQUIRE(floats.format != Format::kFloat32, name, " has dtype float32; expected float16 or bfloat16 on a GPU");
    return floats;
  }
  const bool int8 = values.scalar_type() == ScalarType::Char;
  if (int8 || values.scalar_type() == ScalarType::Float8_e4m3fn) {
    check_shape(name, values, {rows, cols});
    check_shape(name, *scales, {scale_count});
    check_dtype(name, *scales, ScalarType::Float);
    return {int8 ? Format::kInt8 : Format::kFloat8, values.const_data_ptr(), data<float>(name, *scales), rows, cols};
  }
  const int64_t padded = round_up(cols, kWideGroup);
  check_dtype(name, values, ScalarType::Byte);
  check_shape(name, values, {rows, padded / 2});
  check_shape(name, *scales, {rows, padded / kWideGroup});
  check_dtype(name, *scales, ScalarType::Half);
  ADEPT_REQUIRE(scales->numel() <= kMaxSize, name, " has ", scales->numel(), " scales; expected at most ", kMaxSize);
  return {Format::kInt4Wide, values.const_data_ptr(), scales->const_data_ptr(), rows, cols};
}

Matrix rows_matrix(const char* name, const Tensor& values, const OptionalTensor& scales, int64_t rows, int64_t cols) {
  return matrix(name, values, scales, rows, cols, rows);
}

Matrix units_matrix(const char* name, const Tensor& values, const OptionalTensor& scales, int64_t rows, int64_t cols) {
  return matrix(name, values, scales, rows, cols, cols);
}

Tensor copy(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "copy: source is not contiguous");
  const OnDeviceOf device(source);
  Tensor copied = torch::stable::empty_like(source);
  const size_t bytes = static_cast<size_t>(source.numel()) * source.element_size();
  check(cuda::copy(source.const_data_ptr(), copied.mutable_data_ptr(), bytes, current_stream(source)), "copy");
  return copied;
}

// The sum of all 32-bit words, as on a CPU.
Tensor read(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "read: source is not contiguous");
  const OnDeviceOf device(source);
  const size_t bytes = static_cast<size_t>(source.numel()) * source.element_size();
  const void* const from = source.const_data_ptr();
  ADEPT_REQUIRE(bytes % 16 == 0, "source has ", bytes, " bytes; expected a multiple of 16 on a GPU");
  ADEPT_REQUIRE(reinterpret_cast<uintptr_t>(from) % 16 == 0, "source is not aligned to 16 bytes");
  const Tensor sum = torch::stable::new_empty(source, {1}, ScalarType::Int);
  auto* const sink = static_cast<uint32_t*>(sum.mutable_data_ptr());
  check(cudaMemsetAsync(sink, 0, sizeof(*sink), current_stream(source)), "read");
  check(cuda::read(from, bytes, sink, current_stream(source)), "read");
  return sum;
}

void run(const Linear& operands, const Tensor& like, const char* operation) {
  const Workspace workspace(like, cuda::linear_workspace_bytes(operands));
  check(cuda::linear(operands, workspace.data(), current_stream(like)), operation);
}

Tensor embed(const Tensor& table, const Tensor& ids) {
  const OnOneDevice device({"ids", ids}, {});  // the table may be in the host's memory
  ADEPT_REQUIRE(table.dim() == 2, "table has shape ", shape_of(table), "; expected [vocab, hidden]");
  const int64_t tokens = ids.numel(), hidden = table.size(1);
  Matrix rows = float_matrix("table", table, table.size(0), hidden);
  rows.values = device_address("table", table, ids);
  const Tensor out = torch::stable::new_empty(ids, {tokens, hidden}, ScalarType::Float);
  check(cuda::embed({rows, unchecked_indices("ids", ids, tokens), tokens, output(out)}, current_stream(ids)), "embed");
  return out;
}

Tensor layernorm_qkv(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w,
                     const OptionalTensor& scales, const Tensor& b) {
  const OnOneDevice device({"x", x}, {{"gamma", gamma}, {"beta", beta}, {"w", w}, {"scales", scales}, {"b", b}});
  const int64_t hidden = gamma.numel(), rows = b.numel();
  const Activations in("x", x, hidden);
  check_tokens(in);
  const Tensor out = in.empty({in.tokens(), rows});
  run({in.at(), in.tokens(), norm("", gamma, beta, eps, hidden), rows_matrix("w", w, scales, rows, hidden),
       vector("b", b, rows), nullptr, false, output(out)},
      out, "layernorm_qkv");
  return in.narrowed(out);
}

Tensor linear_residual(const Tensor& x, const Tensor& w, const OptionalTensor& scales, const Tensor& b,
                       const Tensor& residual) {
  const OnOneDevice device({"x", x}, {{"w", w}, {"scales", scales}, {"b", b}, {"residual", residual}});
  const int64_t rows = b.numel();
  ADEPT_REQUIRE(x.dim() == 2, "x has shape ", shape_of(x), "; expected [tokens, inputs]");
  const Activations in("x", x, x.size(1)), added("residual", residual, rows);
  check_tokens(in);
  ADEPT_REQUIRE(in.tokens() == added.tokens(), "residual has shape ", shape_of(residual), "; expected [", in.tokens(),
                ", ", rows, "]");
  const Tensor out = in.empty({in.tokens(), rows});
  run({in.at(),
       in.tokens(),
       {},
       rows_matrix("w", w, scales, rows, x.size(1)),
       vector("b", b, rows),
       added.at(),
       false,
       output(out)},
      out, "linear_residual");
  return in.narrowed(out);
}

Tensor mlp(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w_up,
           const OptionalTensor& up_scales, const Tensor& b_up, const Tensor& w_down_t,
           const OptionalTensor& down_scales, const Tensor& b_down, const OptionalTensor& counts) {
  const Operands read = {{"x", x},
                         {"gamma", gamma},
                         {"beta", beta},
                         {"w_up", w_up},
                         {"up_scales", up_scales},
                         {"b_up", b_up},
                         {"w_down_t", w_down_t},
                         {"down_scales", down_scales},
                         {"b_down", b_down}};
  const OnOneDevice device({"x", x}, read, {{"counts", counts}});
  Written({{"counts", counts}}).check_apart(read);
  const int64_t hidden = gamma.numel(), intermediate = b_up.numel();
  const Activations in("x", x, hidden);
  check_tokens(in);
  const Tensor out = in.empty({in.tokens(), hidden});
  const Mlp operands{in.at(),
                     in.tokens(),
                     norm("", gamma, beta, eps, hidden),
                     rows_matrix("w_up", w_up, up_scales, intermediate, hidden),
                     vector("b_up", b_up, intermediate),
                     units_matrix("w_down_t", w_down_t, down_scales, intermediate, hidden),
                     vector("b_down", b_down, hidden),
                     counts_of(counts),
                     output(out)};
  const Workspace workspace(out, cuda::mlp_workspace_bytes(operands));
  check(cuda::mlp(operands, workspace.data(), current_stream(out)), "mlp");
  return in.narrowed(out);
}

Tensor lm_head(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w,
               const OptionalTensor& scales, int64_t rows) {
  const OnOneDevice device({"x", x}, {{"gamma", gamma}, {"beta", beta}, {"w", w}, {"scales", scales}});
  const int64_t hidden = gamma.numel();
  const Activations in("x", x, hidden);
  check_tokens(in);
  check_rows(rows);
  const Matrix head = rows_matrix("w", w, scales, rows, hidden);
  const Tensor out = in.empty({in.tokens(), rows});  // logits stay float32
  run({in.at(), in.tokens(), norm("", gamma, beta, eps, hidden), head, nullptr, nullptr, false, output(out)}, out,
      "lm_head");
  return out;
}

Tensor rotary_append(const Tensor& qkv, const OptionalTensor& q_gamma, const OptionalTensor& q_beta,
                     const OptionalTensor& k_gamma, const OptionalTensor& k_beta, double eps, const Tensor& cos,
                     const Tensor& sin, const Tensor& slots, const Tensor& positions, Tensor cache) {
  const Operands read = {{"qkv", qkv},         {"q_gamma", q_gamma}, {"q_beta", q_beta},
                         {"k_gamma", k_gamma}, {"k_beta", k_beta},   {"cos", cos},
                         {"sin", sin},         {"slots", slots},     {"positions", positions}};
  const OnOneDevice device({"qkv", qkv}, read, {{"cache_layer", cache}});
  Written({{"cache_layer", cache}}).check_apart(read);
  const CacheLayer layer = cache_layer(cache);
  const Activations in("qkv", qkv, 3 * layer.heads * layer.head_dim);
  const RotaryTables tables(cos, sin, layer.head_dim);
  ADEPT_REQUIRE(tables.positions >= layer.capacity, "cos has shape ", shape_of(cos), "; expected the cache's ",
                layer.capacity, " positions");
  const Tensor q = in.empty({in.tokens(), layer.heads, layer.head_dim});
  const RotaryAppend operands{in.at(),
                              in.tokens(),
                              optional_norm("q_", q_gamma, q_beta, eps, layer.head_dim),
                              optional_norm("k_", k_gamma, k_beta, eps, layer.head_dim),
                              tables.cos,
                              tables.sin,
                              tables.half,
                              unchecked_indices("slots", slots, in.tokens()),
                              unchecked_indices("positions", positions, in.tokens()),
                              layer,
                              output(q)};
  check(cuda::rotary_append(operands, current_stream(q)), "rotary_append");
  return in.narrowed(q);
}

Tensor decode_attention(const Tensor& q, const Tensor& cache, const Tensor& slots, const Tensor& lengths,
                        int64_t longest, double scale) {
  const OnOneDevice device({"q", q}, {{"cache_layer", cache}, {"slots", slots}, {"lengths", lengths}});
  const CacheLayer layer = cache_layer(cache);
  ADEPT_REQUIRE(q.dim() == 3 && q.size(1) == layer.heads && q.size(2) == layer.head_dim, "q has shape ", shape_of(q),
                "; expected [tokens, ", layer.heads, ", ", layer.head_dim, "]");
  check_longest(longest, layer);
  const Activations in("q", torch::stable::flatten(q, 1), layer.heads * layer.head_dim);
  const Tensor out = in.empty({in.tokens(), layer.heads * layer.head_dim});
  const DecodeAttention operands{in.at(),
                                 in.tokens(),
                                 layer,
                                 unchecked_indices("slots", slots, in.tokens()),
                                 unchecked_indices("lengths", lengths, in.tokens()),
                                 longest,
                                 float(scale),
                                 output(out)};
  const Workspace workspace(out, cuda::decode_attention_workspace_bytes(operands));
  check(cuda::decode_attention(operands, workspace.data(), current_stream(out)), "decode_attention");
  return in.narrowed(out);
}

// [slot_count] of T.
template <class T>
const T* setting(const char* name, const Tensor& tensor, int64_t slot_count, ScalarType dtype) {
  check_shape(name, tensor, {slot_count});
  check_dtype(name, tensor, dtype);
  return data<T>(name, tensor);
}

Tensor sample(const Tensor& logits, const Tensor& slots, const Tensor& positions, const Tensor& temperature,
              const Tensor& top_k, const Tensor& top_p, const Tensor& min_p, const Tensor& repetition_penalty,
              const Tensor& seed, Tensor seen) {
  const Operands read = {
      {"logits", logits}, {"slots", slots}, {"positions", positions}, {"temperature", temperature},
      {"top_k", top_k},   {"top_p", top_p}, {"min_p", min_p},         {"repetition_penalty", repetition_penalty},
      {"seed", seed}};
  const OnOneDevice device({"logits", logits}, read, {{"seen", seen}});
  Written({{"seen", seen}}).check_apart(read);
  ADEPT_REQUIRE(logits.dim() == 2 && logits.is_contiguous(), "logits has shape ", shape_of(logits),
                "; expected contiguous [tokens, vocab]");
  check_dtype("logits", logits, ScalarType::Float);
  const int64_t tokens = logits.size(0), vocab = logits.size(1), count = temperature.numel();
  check_shape("seen", seen, {count, vocab});
  check_dtype("seen", seen, ScalarType::Bool);
  const Tensor ids = torch::stable::new_empty(logits, {tokens}, ScalarType::Long);
  const cuda::Sample operands{data<float>("logits", logits),
                              tokens,
                              vocab,
                              unchecked_indices("slots", slots, tokens),
                              unchecked_indices("positions", positions, tokens),
                              count,
                              setting<float>("temperature", temperature, count, ScalarType::Float),
                              setting<int64_t>("top_k", top_k, count, ScalarType::Long),
                              setting<float>("top_p", top_p, count, ScalarType::Float),
                              setting<float>("min_p", min_p, count, ScalarType::Float),
                              setting<float>("repetition_penalty", repetition_penalty, count, ScalarType::Float),
                              setting<int64_t>("seed", seed, count, ScalarType::Long),
                              static_cast<bool*>(seen.mutable_data_ptr()),
                              static_cast<int64_t*>(ids.mutable_data_ptr())};
  const Workspace workspace(logits, cuda::sample_workspace_bytes(operands));
  check(cuda::sample(operands, workspace.data(), current_stream(logits)), "sample");
  return ids;
}

void update_decode_state(const Tensor& chosen, Tensor ids, Tensor slots, Tensor positions, const Tensor& limits,
                         const Tensor& ends, Tensor counts, Tensor token_ring) {
  // The token ring may be in the host's memory.
  const OnOneDevice device({"ids", ids}, {{"chosen", chosen},
                                          {"slots", slots},
                                          {"positions", positions},
                                          {"limits", limits},
                                          {"ends", ends},
                                          {"counts", counts}});
  UpdateDecodeState operands =
      update_decode_state_operands(chosen, ids, slots, positions, limits, ends, counts, token_ring);
  operands.token_ring = static_cast<int64_t*>(device_address("token_ring", token_ring, ids));
  check(cuda::update_decode_state(operands, current_stream(ids)), "update_decode_state");
}

}  // namespace

void implement_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("copy", TORCH_BOX(&copy));
  library.impl("read", TORCH_BOX(&read));
  library.impl("embed", TORCH_BOX(&embed));
  library.impl("layernorm_qkv", TORCH_BOX(&layernorm_qkv));
  library.impl("linear_residual", TORCH_BOX(&linear_residual));
  library.impl("mlp", TORCH_BOX(&mlp));
  library.impl("lm_head", TORCH_BOX(&lm_head));
  library.impl("rotary_append", TORCH_BOX(&rotary_append));
  library.impl("decode_attention", TORCH_BOX(&decode_attention));
  library.impl("sample", TORCH_BOX(&sample));
  library.impl("update_decode_state", TORCH_BOX(&update_decode_state));
}

}  // namespace adept::cuda_ops
