// The operators for tensors on an NVIDIA GPU; their schemas are in schemas.h. Compiled only if there is nvcc.
//
// Positions, lengths and slots are in device memory and cannot be checked here: the kernels leave out a token whose
// slot or position is out of range.
#include "cuda_ops.h"

#include "cuda/kernels.h"
#include "cuda/torch_arguments.h"
#include "gpu_matrices.h"
#include "operators.h"

namespace adept::cuda_ops {
namespace {

using cuda::current_stream;

// While it lives, calls that a graph capture forbids by default are allowed, such as queries about memory.
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

// The address, for the device of `like`, of a tensor on that device or in pinned host memory.
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

struct Gpu {
  using Device = OnOneDevice;

  static void* device_address(const char* name, const Tensor& tensor, const Tensor& like) {
    return cuda_ops::device_address(name, tensor, like);
  }

  // Values of three dimensions are in tiles, those of two row by row; in 8 bits there is a scale for each output.
  static Matrix matrix(const char* name, Layout layout, const Tensor& values, const OptionalTensor& scales,
                       int64_t rows, int64_t cols) {
    check_matrix_sizes(name, rows, cols);
    if (values.dim() == 3) return matrix_in_tiles(name, layout, values, scales, rows, cols);
    if (!scales) {
      const Matrix floats = float_matrix(name, values, rows, cols);
      ADEPT_REQUIRE(floats.format != Format::kFloat32, name,
                    " has dtype float32; expected float16 or bfloat16 on a GPU");
      return floats;
    }
    const bool int8 = values.scalar_type() == ScalarType::Char;
    if (int8 || values.scalar_type() == ScalarType::Float8_e4m3fn) {
      check_shape(name, values, {rows, cols});
      check_shape(name, *scales, {layout == Layout::kTiled ? rows : cols});
      check_dtype(name, *scales, ScalarType::Float);
      return {int8 ? Format::kInt8 : Format::kFloat8, values.const_data_ptr(), data<float>(name, *scales), rows, cols};
    }
    return int4_matrix(name, values, *scales, rows, cols);
  }

  static void check_tokens(int64_t tokens) {
    ADEPT_REQUIRE(tokens <= cuda::kMaxTokens, "x has ", tokens, " tokens; expected at most ", cuda::kMaxTokens);
  }

  static int64_t max_positions(const RotaryTables& tables, const CacheLayer& layer) {
    ADEPT_REQUIRE(tables.positions >= layer.capacity, "cos has shape [", tables.positions, ", ", tables.half,
                  "]; expected the cache's ", layer.capacity, " positions");
    return layer.capacity;
  }

  // Values of indices are on the device and cannot be checked here.
  static const int64_t* slots(const Tensor& tensor, int64_t tokens, int64_t) {
    return unchecked_indices("slots", tensor, tokens);
  }

  static const int64_t* indices(const char* name, const Tensor& tensor, const int64_t*, int64_t tokens, int64_t) {
    return unchecked_indices(name, tensor, tokens);
  }

  static void run(const char* operation, const Linear& linear, const Tensor& out) {
    const Workspace workspace(out, cuda::linear_workspace_bytes(linear));
    check(cuda::linear(linear, workspace.data(), current_stream(out)), operation);
  }

  static void run(const char* operation, const Mlp& mlp, const Tensor& out) {
    const Workspace workspace(out, cuda::mlp_workspace_bytes(mlp));
    check(cuda::mlp(mlp, workspace.data(), current_stream(out)), operation);
  }

  static void run(const char* operation, const RotaryAppend& append, const Tensor& out) {
    check(cuda::rotary_append(append, current_stream(out)), operation);
  }

  static void run(const char* operation, const DecodeAttention& attention, const Tensor& out) {
    const Workspace workspace(out, cuda::decode_attention_workspace_bytes(attention));
    check(cuda::decode_attention(attention, workspace.data(), current_stream(out)), operation);
  }

  static void run(const char* operation, const UpdateDecodeState& state, const Tensor& ids) {
    check(cuda::update_decode_state(state, current_stream(ids)), operation);
  }
};

Tensor copy(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "copy: source is not contiguous");
  const cuda::OnDeviceOf device(source);
  Tensor copied = torch::stable::empty_like(source);
  const size_t bytes = static_cast<size_t>(source.numel()) * source.element_size();
  check(cuda::copy(source.const_data_ptr(), copied.mutable_data_ptr(), bytes, current_stream(source)), "copy");
  return copied;
}

// The sum of all 32-bit words, as on a CPU.
Tensor read(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "read: source is not contiguous");
  const cuda::OnDeviceOf device(source);
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

Tensor embed(const Tensor& table, const Tensor& ids) {
  const OnOneDevice device({"ids", ids}, {});  // the table may be in host memory
  ADEPT_REQUIRE(table.dim() == 2, "table has shape ", shape_of(table), "; expected [vocab, hidden]");
  const int64_t tokens = ids.numel(), hidden = table.size(1);
  Matrix rows = float_matrix("table", table, table.size(0), hidden);
  rows.values = device_address("table", table, ids);
  const Tensor out = torch::stable::new_empty(ids, {tokens, hidden}, ScalarType::Float);
  check(cuda::embed({rows, unchecked_indices("ids", ids, tokens), tokens, output(out)}, current_stream(ids)), "embed");
  return out;
}

Tensor prefill_attention(const Tensor& q, const Tensor& cache, int64_t slot, int64_t start, double scale) {
  const Checked<Gpu> checked({{"q", q}, {"cache_layer", cache}});
  const CacheLayer layer = cache_layer(cache);
  const TokenInputs in = attention_queries(q, layer);
  const int64_t tokens = in.tokens();
  ADEPT_REQUIRE(layer.format != Format::kFloat32, "cache_layer has dtype float32; expected float16 or bfloat16");
  ADEPT_REQUIRE(slot >= 0 && slot < layer.slots, "slot is ", slot, "; expected 0 to ", layer.slots - 1);
  ADEPT_REQUIRE(start >= 0 && start <= layer.capacity - tokens, "start is ", start, " of ", tokens,
                " tokens; expected 0 to ", layer.capacity - tokens);
  const Tensor out = in.empty({tokens, layer.heads * layer.head_dim});
  const PrefillAttention attention{in.at(), tokens, layer, slot, start, float(scale), output(out)};
  check(cuda::prefill_attention(attention, current_stream(out)), "prefill_attention");
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
              const Tensor& frequency_penalty, const Tensor& presence_penalty, const Tensor& is_biased,
              const Tensor& seed, const Tensor& logit_bias, Tensor seen, Tensor counts) {
  const Operands read = {{"logits", logits},
                         {"slots", slots},
                         {"positions", positions},
                         {"temperature", temperature},
                         {"top_k", top_k},
                         {"top_p", top_p},
                         {"min_p", min_p},
                         {"repetition_penalty", repetition_penalty},
                         {"frequency_penalty", frequency_penalty},
                         {"presence_penalty", presence_penalty},
                         {"is_biased", is_biased},
                         {"seed", seed},
                         {"logit_bias", logit_bias}};
  const Checked<Gpu> checked(read, {{"seen", seen}, {"counts", counts}});
  ADEPT_REQUIRE(logits.dim() == 2 && logits.is_contiguous(), "logits has shape ", shape_of(logits),
                "; expected contiguous [tokens, vocab]");
  check_dtype("logits", logits, ScalarType::Float);
  const int64_t tokens = logits.size(0), vocab = logits.size(1), count = temperature.numel();
  check_shape("seen", seen, {count, vocab});
  check_dtype("seen", seen, ScalarType::Bool);
  check_shape("counts", counts, {count, vocab});
  check_dtype("counts", counts, ScalarType::Int);
  aligned("counts", counts.const_data_ptr(), sizeof(int32_t));
  check_shape("logit_bias", logit_bias, {count, vocab});
  check_dtype("logit_bias", logit_bias, ScalarType::Float);
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
                              setting<float>("frequency_penalty", frequency_penalty, count, ScalarType::Float),
                              setting<float>("presence_penalty", presence_penalty, count, ScalarType::Float),
                              setting<bool>("is_biased", is_biased, count, ScalarType::Bool),
                              setting<int64_t>("seed", seed, count, ScalarType::Long),
                              data<float>("logit_bias", logit_bias),
                              static_cast<bool*>(seen.mutable_data_ptr()),
                              static_cast<int32_t*>(counts.mutable_data_ptr()),
                              static_cast<int64_t*>(ids.mutable_data_ptr())};
  const Workspace workspace(logits, cuda::sample_workspace_bytes(operands));
  check(cuda::sample(operands, workspace.data(), current_stream(logits)), "sample");
  return ids;
}

using TwoTensors = std::tuple<Tensor, Tensor>;

// The results: inputs [rows, cols] and the powers of tokens.
struct Prepared {
  Prepared(const Tensor& like, int64_t tokens, int64_t cols, int64_t raised, int64_t rows, ScalarType dtype)
      : values(torch::stable::new_empty(like, {rows, cols}, dtype)),
        powers(torch::stable::new_empty(like, {tokens}, ScalarType::Float)) {
    ADEPT_REQUIRE(raised >= 0 && raised <= 64, "raised is ", raised, "; expected 0 to 64");
    const std::optional<Format> format = float_format(values);
    ADEPT_REQUIRE(format.has_value(), "dtype is ", torch::headeronly::toString(dtype),
                  "; expected Float, Half or BFloat16");
    to = {*format, values.mutable_data_ptr(), output(powers), tokens, rows, cols, int(raised)};
  }

  static void check(int64_t tokens, int64_t cols, int64_t rows) {
    ADEPT_REQUIRE(cols % cuda::kColsMultiple == 0 && cols <= cuda::kMaxPreparedCols, "x has ", cols,
                  " columns; expected a multiple of ", cuda::kColsMultiple, " up to ", cuda::kMaxPreparedCols);
    const int64_t most = tokens + cuda::kMaxPaddingRows;
    ADEPT_REQUIRE(rows >= tokens && rows <= most, "rows is ", rows, "; expected ", tokens, " to ", most);
  }

  Tensor values, powers;
  cuda::PreparedRows to;
};

TwoTensors prepare_rows(const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta, double eps,
                        int64_t raised, int64_t rows, ScalarType dtype) {
  const OnOneDevice device({"x", x}, {{"gamma", gamma}, {"beta", beta}});
  ADEPT_REQUIRE(x.dim() == 2, "x has shape ", shape_of(x), "; expected [tokens, columns]");
  const TokenInputs in("x", x, x.size(1));
  const Norm norm = optional_norm("", gamma, beta, eps, x.size(1));
  Prepared::check(in.tokens(), x.size(1), rows);
  const Prepared prepared(x, in.tokens(), x.size(1), raised, rows, dtype);
  check(cuda::prepare_rows(in.at(), norm, prepared.to, current_stream(x)), "prepare_rows");
  return {prepared.values, prepared.powers};
}

cuda::Product product_of(const Tensor& product, const Tensor& powers, const OptionalTensor& scales,
                         const OptionalTensor& bias) {
  const int64_t dim = product.dim(), tokens = powers.numel();
  const std::optional<Format> format = float_format(product);
  ADEPT_REQUIRE((dim == 2 || dim == 3) && product.is_contiguous() && format.has_value(), "product has shape ",
                shape_of(product), " and dtype ", torch::headeronly::toString(product.scalar_type()),
                "; expected contiguous floats [parts, rows, columns], or of one part");
  const int64_t rows = product.size(dim - 2), cols = product.size(dim - 1), parts = dim == 3 ? product.size(0) : 1;
  check_sizes("product", rows, cols);
  ADEPT_REQUIRE(parts > 0 && rows >= tokens, "product has shape ", shape_of(product), " and powers ", tokens,
                " tokens; expected a row or more for each, in one part or more");
  return {*format,
          aligned("product", product.const_data_ptr(), bytes_of(*format)),
          parts,
          rows * cols,
          vector("powers", powers, tokens),
          scales ? vector("scales", *scales, cols) : nullptr,
          bias ? vector("bias", *bias, cols) : nullptr,
          tokens,
          cols};
}

TwoTensors activate_rows(const Tensor& product, const Tensor& powers, const OptionalTensor& scales, const Tensor& bias,
                         int64_t raised, int64_t rows) {
  const OnOneDevice device({"product", product}, {{"powers", powers}, {"scales", scales}, {"bias", bias}});
  const cuda::Product of = product_of(product, powers, scales, bias);
  ADEPT_REQUIRE(of.parts == 1, "product has ", of.parts, " parts; expected one");
  Prepared::check(of.tokens, of.cols, rows);
  const Prepared prepared(product, of.tokens, of.cols, raised, rows, product.scalar_type());
  check(cuda::activate_rows(of, prepared.to, current_stream(product)), "activate_rows");
  return {prepared.values, prepared.powers};
}

Tensor finish_rows(const Tensor& product, const Tensor& powers, const OptionalTensor& scales,
                   const OptionalTensor& bias, bool relu_squared, const OptionalTensor& residual) {
  const OnOneDevice device({"product", product},
                           {{"powers", powers}, {"scales", scales}, {"bias", bias}, {"residual", residual}});
  const cuda::Product of = product_of(product, powers, scales, bias);
  std::optional<TokenInputs> added;
  if (residual) added.emplace("residual", *residual, of.cols);
  ADEPT_REQUIRE(!added || added->tokens() == of.tokens, "residual has shape ", shape_of(*residual), "; expected [",
                of.tokens, ", ", of.cols, "]");
  const Tensor out = torch::stable::new_empty(product, {of.tokens, of.cols}, ScalarType::Float);
  const cuda::FinishRows finish{of, relu_squared, added ? added->at() : nullptr, output(out)};
  check(cuda::finish_rows(finish, current_stream(product)), "finish_rows");
  return out;
}

Tensor widen(const Tensor& w, const OptionalTensor& scales, int64_t cols, int64_t start, int64_t stop,
             ScalarType dtype) {
  const OnOneDevice device({"w", w}, {{"scales", scales}});
  cuda::Widen widen = matrix_to_widen(w, scales, cols);
  ADEPT_REQUIRE(0 <= start && start <= stop && stop <= widen.rows, "start and stop are ", start, " and ", stop,
                "; expected rows of the ", widen.rows, " of w");
  const char* const given = torch::headeronly::toString(dtype);
  const bool half = dtype == ScalarType::Half;
  ADEPT_REQUIRE(half || dtype == ScalarType::BFloat16, "dtype is ", given, "; expected Half or BFloat16");
  widen.start = start;
  widen.stop = stop;
  widen.out_format = half ? Format::kFloat16 : Format::kBFloat16;
  ADEPT_REQUIRE(is_quantized(widen.format) || widen.format == widen.out_format, "dtype is ", given,
                "; expected that of w");
  const Tensor out = torch::stable::new_empty(w, {stop - start, cols}, dtype);
  widen.out = out.mutable_data_ptr();
  check(cuda::widen(widen, current_stream(w)), "widen");
  return out;
}

}  // namespace

void implement_operators(torch::stable::detail::StableLibrary& library) {
  Operators<Gpu>::implement(library);
  implement_decode_layers(library);
  library.impl("copy", TORCH_BOX(&copy));
  library.impl("read", TORCH_BOX(&read));
  library.impl("embed", TORCH_BOX(&embed));
  library.impl("sample", TORCH_BOX(&sample));
  library.impl("prepare_rows", TORCH_BOX(&prepare_rows));
  library.impl("activate_rows", TORCH_BOX(&activate_rows));
  library.impl("finish_rows", TORCH_BOX(&finish_rows));
  library.impl("widen", TORCH_BOX(&widen));
  library.impl("prefill_attention", TORCH_BOX(&prefill_attention));
}

}  // namespace adept::cuda_ops
