// The operators for tensors of a CPU; their schemas are in schemas.h, the versions for a GPU in cuda_ops.cpp.
//
// Tensors are checked and turned into the plain pointers that the kernels take. Only torch's stable ABI is used, so
// that one build serves every torch from 2.11 on.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cuda/workspace.h"
#include "layer_tensors.h"
#include "operators.h"
#include "schemas.h"
#ifdef ADEPT_FAST_WITH_CUDA
#include "cuda/torch_stream.h"
#endif

namespace adept::cpu_ops {
namespace {

void run_on_threads(int64_t count, void (*body)(void*), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context);
  });
}

// torch's pool, as large as torch.set_num_threads says.
Threads threads() { return {int64_t(torch::stable::get_num_threads()), run_on_threads}; }

Format quantized_format(const char* name, const Tensor& values, const Tensor& scales) {
  const bool int8 = values.scalar_type() == ScalarType::Char;
  ADEPT_REQUIRE(int8 || values.scalar_type() == ScalarType::Byte, name, " has scales and dtype ",
                torch::headeronly::toString(values.scalar_type()), "; expected int8 or uint8");
  check_dtype(name, scales, int8 ? ScalarType::Float : ScalarType::Half);
  return int8 ? Format::kInt8 : Format::kInt4G32;
}

struct Cpu {
  // Tensors of other devices do not come here.
  struct Device {
    Device(const Operand&, Operands, Operands) {}
  };

  static void* device_address(const char*, const Tensor& tensor, const Tensor&) { return tensor.mutable_data_ptr(); }

  static Matrix matrix(const char* name, Layout layout, const Tensor& values, const OptionalTensor& scales,
                       int64_t rows, int64_t cols) {
    if (!scales) return float_matrix(name, values, rows, cols);
    check_sizes(name, rows, cols);
    const Format format = quantized_format(name, values, *scales);
    const bool int8 = format == Format::kInt8, tiled = layout == Layout::kTiled;
    const int64_t inputs = tiled ? cols : rows, padded = round_up(cols, tiled ? kTiledColumns : kTransposedColumns);
    ADEPT_REQUIRE(inputs <= kMaxQuantizedInputs, name, " has ", inputs, " inputs; expected at most ",
                  kMaxQuantizedInputs);
    if (tiled) {
      const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
      check_shape(name, values, {tiles, padded / (int8 ? 4 : 8), kTileRows, 4});
      if (!int8) check_shape(name, *scales, {tiles, padded / kGroupSize32, 1, kTileRows});
      if (int8) check_shape(name, *scales, {tiles * kTileRows});
    } else {
      check_shape(name, values, {rows, int8 ? padded : padded / 2});
      if (!int8) check_shape(name, *scales, {rows, 1, padded / kGroupSize32});
      if (int8) check_shape(name, *scales, {padded});
    }
    return {format, values.const_data_ptr(), aligned(name, scales->const_data_ptr(), int8 ? 4 : 2), rows, cols};
  }

  static void check_tokens(int64_t) {}

  static int64_t max_positions(const RotaryTables& tables, const CacheLayer& layer) {
    return std::min(tables.positions, layer.capacity);
  }

  // int64 [tokens], the slot of each token; -1 leaves a token out.
  static const int64_t* slots(const Tensor& tensor, int64_t tokens, int64_t slot_count) {
    const int64_t* slots = unchecked_indices("slots", tensor, tokens);
    for (int64_t i = 0; i < tokens; ++i)
      ADEPT_REQUIRE(slots[i] >= -1 && slots[i] < slot_count, "slots holds ", slots[i], "; expected -1 to ",
                    slot_count - 1);
    return slots;
  }

  // int64 [tokens], each from 0 to below `end` unless its token is left out.
  static const int64_t* indices(const char* name, const Tensor& tensor, const int64_t* slots, int64_t tokens,
                                int64_t end) {
    const int64_t* values = unchecked_indices(name, tensor, tokens);
    for (int64_t i = 0; i < tokens; ++i)
      ADEPT_REQUIRE(slots[i] < 0 || (values[i] >= 0 && values[i] < end), name, " holds ", values[i], "; expected 0 to ",
                    end - 1);
    return values;
  }

  static void run(const char*, const Linear& linear, const Tensor&) { kernels().linear(threads(), linear); }
  static void run(const char*, const Mlp& mlp, const Tensor&) { kernels().mlp(threads(), mlp); }
  static void run(const char*, const RotaryAppend& append, const Tensor&) {
    kernels().rotary_append(threads(), append);
  }
  static void run(const char*, const DecodeAttention& attention, const Tensor&) {
    kernels().decode_attention(threads(), attention);
  }

  static void run(const char*, const UpdateDecodeState& state, const Tensor&) {
    for (int64_t row = 0; row < state.rows; ++row) {
      const int64_t slot = state.slots[row], position = state.positions[row], count = state.counts[row];
      ADEPT_REQUIRE(slot >= -1 && slot < state.slot_count, "slots holds ", slot, "; expected -1 to ",
                    state.slot_count - 1);
      ADEPT_REQUIRE(slot < 0 || (position >= 0 && position <= kMaxCount), "positions holds ", position,
                    "; expected 0 to ", kMaxCount);
      ADEPT_REQUIRE(count >= 0 && count <= kMaxCount, "counts holds ", count, "; expected 0 to ", kMaxCount);
    }
    update_rows(state);
  }

  static void update_rows(const UpdateDecodeState& state) {
    for (int64_t row = 0; row < state.rows; ++row) {
      const int64_t count = ++state.counts[row], slot = state.slots[row];
      int64_t id = kAbsent;
      if (slot >= 0) {
        id = state.chosen[row];
        state.ids[row] = std::max<int64_t>(id, 0);
        const bool ends = id < 0 || id >= state.vocab || state.ends[slot * state.vocab + id];
        if (++state.positions[row] >= state.limits[row] || ends) state.slots[row] = -1;
      }
      state.token_ring[row * state.depth + count % state.depth] =
          static_cast<int64_t>(static_cast<uint64_t>(count) << 32 | (static_cast<uint64_t>(id) & 0xffffffffu));
    }
  }
};

Tensor copy(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "copy: source is not contiguous");
  return torch::stable::clone(source);
}

Tensor read(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "read: source is not contiguous");
  const Tensor sum = torch::stable::new_empty(source, {1}, ScalarType::Int);
  const int64_t bytes = source.numel() * int64_t(source.element_size());
  *static_cast<int32_t*>(sum.mutable_data_ptr()) = kernels().read(threads(), source.const_data_ptr(), bytes);
  return sum;
}

// `t`: the layer's tensors, an empty one for each that it does not have.
DecoderLayer decoder_layer(const Tensor* t, double eps, int64_t hidden, const CacheLayer& cache) {
  using namespace layer_tensor;
  const auto optional = [&](size_t i) { return t[i].numel() ? OptionalTensor(t[i]) : std::nullopt; };
  const int64_t intermediate = t[b_up].numel();
  return {norm("input_", t[input_gamma], t[input_beta], eps, hidden),
          Cpu::matrix("w_qkv", Layout::kTiled, t[w_qkv], optional(qkv_scales), 3 * hidden, hidden),
          vector("b_qkv", t[b_qkv], 3 * hidden),
          optional_norm("q_", optional(q_gamma), optional(q_beta), eps, cache.head_dim),
          optional_norm("k_", optional(k_gamma), optional(k_beta), eps, cache.head_dim),
          Cpu::matrix("w_dense", Layout::kTiled, t[w_dense], optional(dense_scales), hidden, hidden),
          vector("b_dense", t[b_dense], hidden),
          norm("mlp_", t[mlp_gamma], t[mlp_beta], eps, hidden),
          Cpu::matrix("w_up", Layout::kTiled, t[w_up], optional(up_scales), intermediate, hidden),
          vector("b_up", t[b_up], intermediate),
          Cpu::matrix("w_down_t", Layout::kTransposed, t[w_down_t], optional(down_scales), intermediate, hidden),
          vector("b_down", t[b_down], hidden),
          cache};
}

Tensor decode_step(const Tensor& ids, const Tensor& slots, const Tensor& positions, const Tensor& embedding,
                   std::vector<Tensor> layers, const Tensor& cos, const Tensor& sin, Tensor cache,
                   const Tensor& final_gamma, const Tensor& final_beta, const Tensor& w, const OptionalTensor& scales,
                   int64_t rows, double eps, double scale, const OptionalTensor& counts) {
  constexpr size_t kTensors = layer_tensor::kCount;
  ADEPT_REQUIRE(cache.dim() == 6 && cache.size(0) > 0 && layers.size() % kTensors == 0 &&
                    cache.size(0) == int64_t(layers.size() / kTensors),
                "layers has ", layers.size(), " tensors and the cache shape ", shape_of(cache), "; expected ", kTensors,
                " for each of its layers");
  // Layers that share memory would each be contiguous.
  ADEPT_REQUIRE(cache.is_contiguous(), "cache is not contiguous");
  const Written written({{"cache", cache}, {"counts", counts}});
  written.check_apart({{"ids", ids},
                       {"slots", slots},
                       {"positions", positions},
                       {"embedding", embedding},
                       {"cos", cos},
                       {"sin", sin},
                       {"final_gamma", final_gamma},
                       {"final_beta", final_beta},
                       {"w", w},
                       {"scales", scales}});
  for (const Tensor& tensor : layers) written.check_apart("layers", tensor);
  const int64_t tokens = ids.numel(), hidden = final_gamma.numel();
  ADEPT_REQUIRE(embedding.dim() == 2, "embedding has shape ", shape_of(embedding), "; expected [vocab, hidden]");
  std::vector<DecoderLayer> decoder;
  for (int64_t i = 0; i < cache.size(0); ++i) {
    const CacheLayer layer = cache_layer(torch::stable::select(cache, 0, i));
    decoder.push_back(decoder_layer(&layers[size_t(i) * kTensors], eps, hidden, layer));
    ADEPT_REQUIRE(layer.heads * layer.head_dim == hidden, "the cache has shape ", shape_of(cache), "; expected ",
                  hidden, " elements over its heads");
  }
  const CacheLayer& shape = decoder.front().cache;
  const RotaryTables tables(cos, sin, shape.head_dim);
  check_rows(rows);
  const Matrix head = Cpu::matrix("w", Layout::kTiled, w, scales, rows, hidden);
  const int64_t* const slot_of = Cpu::slots(slots, tokens, shape.slots);
  const Tensor logits = torch::stable::new_empty(final_gamma, {tokens, rows});
  kernels().decode_step(
      threads(), {Cpu::indices("ids", ids, slot_of, tokens, embedding.size(0)), slot_of,
                  Cpu::indices("positions", positions, slot_of, tokens, Cpu::max_positions(tables, shape)), tokens,
                  float_matrix("embedding", embedding, embedding.size(0), hidden), decoder.data(),
                  int64_t(decoder.size()), tables.cos, tables.sin, tables.half, float(scale),
                  norm("final_", final_gamma, final_beta, eps, hidden), head, counts_of(counts), output(logits)});
  return logits;
}

}  // namespace
}  // namespace adept::cpu_ops

STABLE_TORCH_LIBRARY(adept_fast, library) { adept::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(adept_fast, CPU, library) {
  adept::Operators<adept::cpu_ops::Cpu>::implement(library);
  library.impl("copy", TORCH_BOX(&adept::cpu_ops::copy));
  library.impl("read", TORCH_BOX(&adept::cpu_ops::read));
  library.impl("decode_step", TORCH_BOX(&adept::cpu_ops::decode_step));
}

// Functions that Python can call besides the operators.
static PyObject* instruction_set(PyObject*, PyObject*) { return PyUnicode_FromString(adept::kernels().name); }

static PyObject* runnable_instruction_sets(PyObject*, PyObject*) {
  return PyUnicode_FromString(adept::runnable_instruction_sets());
}

static PyObject* use_instruction_set(PyObject*, PyObject* name) {
  PyObject* bytes = PyUnicode_AsUTF8String(name);
  if (bytes == nullptr) return nullptr;
  const bool used = adept::use_instruction_set(PyBytes_AsString(bytes));
  Py_DECREF(bytes);
  return PyBool_FromLong(used);
}

static PyObject* layer_tensors(PyObject*, PyObject*) { return PyUnicode_FromString(adept::kLayerTensorNames); }

// The workspaces of a decode step's kernels on a GPU; built without CUDA too, for planning.
static PyObject* cuda_step_bytes(PyObject*, PyObject* args) {
  long long rows, positions, hidden, intermediate, heads, head_dim, vocab;
  if (!PyArg_ParseTuple(args, "LLLLLLL", &rows, &positions, &hidden, &intermediate, &heads, &head_dim, &vocab))
    return nullptr;
  return PyLong_FromLongLong(
      adept::cuda::decode_step_bytes(rows, positions, hidden, intermediate, heads, head_dim, vocab));
}

// The names that the CUDA operators need from torch and that are missing; empty if none is.
static PyObject* missing_for_cuda(PyObject*, PyObject*) {
#ifdef ADEPT_FAST_WITH_CUDA
  return PyUnicode_FromString(adept::cuda::stream_function().missing);
#else
  return PyUnicode_FromString("the extension is built without CUDA");
#endif
}

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyMethodDef methods[] = {
      {"instruction_set", instruction_set, METH_NOARGS, nullptr},
      {"runnable_instruction_sets", runnable_instruction_sets, METH_NOARGS, nullptr},
      {"use_instruction_set", use_instruction_set, METH_O, nullptr},
      {"layer_tensors", layer_tensors, METH_NOARGS, nullptr},
      {"cuda_step_bytes", cuda_step_bytes, METH_VARARGS, nullptr},
      {"missing_for_cuda", missing_for_cuda, METH_NOARGS, nullptr},
      {nullptr, nullptr, 0, nullptr},
  };
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
