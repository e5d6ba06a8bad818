// The operators for tensors on an NVIDIA GPU; their schemas are in schemas.h. Compiled only if there is nvcc.
//
// Positions, lengths and slots are in device memory and cannot be checked here: the kernels leave out a token whose
// slot or position is out of range.
#include "cuda_ops.h"

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/torch_device.h"
#include "cuda/workspace.h"
#include "operators.h"

namespace adept::cuda_ops {
namespace {

using cuda::current_stream, cuda::OnDeviceOf;

void check(cudaError_t error, const char* operation) {
  ADEPT_REQUIRE(error == cudaSuccess, operation, ": ", cudaGetErrorString(error));
}

// While it lives, the current device is that of the first operand. Refuses operands on other devices.
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

  // Python's None arrives as an undefined tensor.
  static void check_given(const Operand& operand) {
    ADEPT_REQUIRE(operand.tensor->defined(), operand.name, " is None; expected a tensor");
  }

  OnDeviceOf device_;
};

// Workspace of a kernel; torch reuses the memory in stream order.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) : memory_(torch::stable::new_empty(like, {bytes}, ScalarType::Byte)) {}

  void* data() const { return memory_.mutable_data_ptr(); }

 private:
  Tensor memory_;
};

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

  // Row by row in both layouts; in 8 bits there is a scale for each output.
  static Matrix matrix(const char* name, Layout layout, const Tensor& values, const OptionalTensor& scales,
                       int64_t rows, int64_t cols) {
    ADEPT_REQUIRE(cols > 0 && cols % cuda::kColsMultiple == 0, name, " has ", cols, " columns; expected a multiple of ",
                  cuda::kColsMultiple, " on a GPU");
    ADEPT_REQUIRE(rows <= cuda::kMaxRows && cols <= cuda::kMaxCols, name, " has ", rows, " rows and ", cols,
                  " columns; expected at most ", cuda::kMaxRows, " and ", cuda::kMaxCols, " on a GPU");
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
    const bool by_32 = values.dim() == 2 && scales->dim() == 2 && values.size(1) * 2 == scales->size(1) * kGroupSize32;
    const int64_t group = by_32 ? kGroupSize32 : kGroupSize128, padded = round_up(cols, group);
    check_dtype(name, values, ScalarType::Byte);
    check_shape(name, values, {rows, padded / 2});
    check_shape(name, *scales, {rows, padded / group});
    check_dtype(name, *scales, ScalarType::Half);
    ADEPT_REQUIRE(scales->numel() <= kMaxSize, name, " has ", scales->numel(), " scales; expected at most ", kMaxSize);
    return {by_32 ? Format::kInt4G32 : Format::kInt4G128, values.const_data_ptr(), scales->const_data_ptr(), rows,
            cols};
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

Tensor token_logprobs(const Tensor& logits, const Tensor& chosen, int64_t count) {
  const Checked<Gpu> checked({{"logits", logits}, {"chosen", chosen}});
  ADEPT_REQUIRE(logits.dim() == 2 && logits.is_contiguous(), "logits has shape ", shape_of(logits),
                "; expected contiguous [tokens, vocab]");
  check_dtype("logits", logits, ScalarType::Float);
  const int64_t tokens = logits.size(0), vocab = logits.size(1);
  const int64_t most = std::min<int64_t>(cuda::kMaxTopLogprobs, vocab);
  ADEPT_REQUIRE(count >= 0 && count <= most, "count is ", count, "; expected 0 to ", most);
  const Tensor out = torch::stable::new_empty(logits, {tokens, 2, 1 + count}, ScalarType::Float);
  const cuda::TokenLogprobs operands{data<float>("logits", logits),
                                     tokens,
                                     vocab,
                                     unchecked_indices("chosen", chosen, tokens),
                                     count,
                                     static_cast<float*>(out.mutable_data_ptr())};
  const Workspace workspace(logits, cuda::token_logprobs_workspace_bytes(operands));
  check(cuda::token_logprobs(operands, workspace.data(), current_stream(logits)), "token_logprobs");
  return out;
}

}  // namespace

void implement_operators(torch::stable::detail::StableLibrary& library) {
  Operators<Gpu>::implement(library);
  library.impl("copy", TORCH_BOX(&copy));
  library.impl("read", TORCH_BOX(&read));
  library.impl("embed", TORCH_BOX(&embed));
  library.impl("sample", TORCH_BOX(&sample));
  library.impl("token_logprobs", TORCH_BOX(&token_logprobs));
  library.impl("prefill_attention", TORCH_BOX(&prefill_attention));
}

}  // namespace adept::cuda_ops
