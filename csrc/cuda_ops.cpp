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

}  // namespace

void implement_operators(torch::stable::detail::StableLibrary& library) {
  Operators<Gpu>::implement(library);
  implement_sampling(library);
  implement_gemm_rows(library);
  implement_decode_layers(library);
  library.impl("copy", TORCH_BOX(&copy));
  library.impl("read", TORCH_BOX(&read));
  library.impl("embed", TORCH_BOX(&embed));
  library.impl("prefill_attention", TORCH_BOX(&prefill_attention));
}

}  // namespace adept::cuda_ops
