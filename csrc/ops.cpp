// The operators for tensors of a CPU; their schemas stand in schemas.h, the versions for a GPU in cuda_ops.cpp.
//
// Here tensors are checked and turned into the plain pointers that the kernels take. Only torch's stable ABI is
// used, so that one build serves every torch from 2.11 on.
#include <Python.h>

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "arguments.h"
#include "cpu/kernels.h"
#include "cuda/workspace.h"
#include "overlap.h"
#include "schemas.h"
#include "update_decode_state.h"
#ifdef ADEPT_FAST_WITH_CUDA
#include "cuda/torch_stream.h"
#endif

namespace adept {
namespace {

void run_on_threads(int64_t count, void (*body)(void*), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context);
  });
}

// torch's pool, as large as torch.set_num_threads says.
Threads threads() { return {int64_t(torch::stable::get_num_threads()), run_on_threads}; }

Tensor copy(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "copy: source is not contiguous");
  return torch::stable::clone(source);
}

Tensor layernorm_qkv(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w,
                     const OptionalTensor& scales, const Tensor& b) {
  const int64_t hidden = gamma.numel(), rows = b.numel();
  const Activations in("x", x, hidden);
  const Tensor out = in.empty({in.tokens(), rows});
  kernels().linear(threads(),
                   {in.at(), in.tokens(), norm("", gamma, beta, eps, hidden), rows_matrix("w", w, scales, rows, hidden),
                    vector("b", b, rows), nullptr, false, output(out)});
  return in.narrowed(out);
}

Tensor linear_residual(const Tensor& x, const Tensor& w, const OptionalTensor& scales, const Tensor& b,
                       const Tensor& residual) {
  const int64_t rows = b.numel();
  ADEPT_REQUIRE(x.dim() == 2, "x has shape ", shape_of(x), "; expected [tokens, inputs]");
  const Activations in("x", x, x.size(1)), added("residual", residual, rows);
  ADEPT_REQUIRE(in.tokens() == added.tokens(), "residual has shape ", shape_of(residual), "; expected [", in.tokens(),
                ", ", rows, "]");
  const Tensor out = in.empty({in.tokens(), rows});
  kernels().linear(threads(), {in.at(),
                               in.tokens(),
                               {},
                               rows_matrix("w", w, scales, rows, x.size(1)),
                               vector("b", b, rows),
                               added.at(),
                               false,
                               output(out)});
  return in.narrowed(out);
}

Tensor mlp(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w_up,
           const OptionalTensor& up_scales, const Tensor& b_up, const Tensor& w_down_t,
           const OptionalTensor& down_scales, const Tensor& b_down, const OptionalTensor& counts) {
  const int64_t hidden = gamma.numel(), intermediate = b_up.numel();
  Written({{"counts", counts}})
      .check_apart({{"x", x},
                    {"gamma", gamma},
                    {"beta", beta},
                    {"w_up", w_up},
                    {"up_scales", up_scales},
                    {"b_up", b_up},
                    {"w_down_t", w_down_t},
                    {"down_scales", down_scales},
                    {"b_down", b_down}});
  const Activations in("x", x, hidden);
  const Tensor out = in.empty({in.tokens(), hidden});
  kernels().mlp(threads(),
                {in.at(), in.tokens(), norm("", gamma, beta, eps, hidden),
                 rows_matrix("w_up", w_up, up_scales, intermediate, hidden), vector("b_up", b_up, intermediate),
                 units_matrix("w_down_t", w_down_t, down_scales, intermediate, hidden),
                 vector("b_down", b_down, hidden), counts_of(counts), output(out)});
  return in.narrowed(out);
}

Tensor lm_head(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w,
               const OptionalTensor& scales, int64_t rows) {
  const int64_t hidden = gamma.numel();
  const Activations in("x", x, hidden);
  check_rows(rows);
  const Matrix head = rows_matrix("w", w, scales, rows, hidden);
  const Tensor out = in.empty({in.tokens(), rows});  // logits stay float32
  kernels().linear(threads(), {in.at(), in.tokens(), norm("", gamma, beta, eps, hidden), head, nullptr, nullptr, false,
                               output(out)});
  return out;
}

Tensor rotary_append(const Tensor& qkv, const OptionalTensor& q_gamma, const OptionalTensor& q_beta,
                     const OptionalTensor& k_gamma, const OptionalTensor& k_beta, double eps, const Tensor& cos,
                     const Tensor& sin, const Tensor& slots, const Tensor& positions, Tensor cache) {
  Written({{"cache_layer", cache}})
      .check_apart({{"qkv", qkv},
                    {"q_gamma", q_gamma},
                    {"q_beta", q_beta},
                    {"k_gamma", k_gamma},
                    {"k_beta", k_beta},
                    {"cos", cos},
                    {"sin", sin},
                    {"slots", slots},
                    {"positions", positions}});
  const CacheLayer layer = cache_layer(cache);
  const Activations in("qkv", qkv, 3 * layer.heads * layer.head_dim);
  const RotaryTables tables(cos, sin, layer.head_dim);
  const int64_t* const slot_of = slot_indices(slots, in.tokens(), layer.slots);
  const Tensor q = in.empty({in.tokens(), layer.heads, layer.head_dim});
  kernels().rotary_append(
      threads(),
      {in.at(), in.tokens(), optional_norm("q_", q_gamma, q_beta, eps, layer.head_dim),
       optional_norm("k_", k_gamma, k_beta, eps, layer.head_dim), tables.cos, tables.sin, tables.half, slot_of,
       indices("positions", positions, slot_of, in.tokens(), std::min(tables.positions, layer.capacity)), layer,
       output(q)});
  return in.narrowed(q);
}

Tensor decode_attention(const Tensor& q, const Tensor& cache, const Tensor& slots, const Tensor& lengths,
                        int64_t longest, double scale) {
  const CacheLayer layer = cache_layer(cache);
  ADEPT_REQUIRE(q.dim() == 3 && q.size(1) == layer.heads && q.size(2) == layer.head_dim, "q has shape ", shape_of(q),
                "; expected [tokens, ", layer.heads, ", ", layer.head_dim, "]");
  const Activations in("q", torch::stable::flatten(q, 1), layer.heads * layer.head_dim);
  check_longest(longest, layer);
  const int64_t* const slot_of = slot_indices(slots, in.tokens(), layer.slots);
  const Tensor out = in.empty({in.tokens(), layer.heads * layer.head_dim});
  kernels().decode_attention(
      threads(), {in.at(), in.tokens(), layer, slot_of, indices("lengths", lengths, slot_of, in.tokens(), longest + 1),
                  longest, float(scale), output(out)});
  return in.narrowed(out);
}

void dequantize_units(const Tensor& values, const Tensor& scales, Tensor out) {
  Written({{"out", out}}).check_apart({{"values", values}, {"scales", scales}});
  const std::optional<Format> format = float_format(out);
  ADEPT_REQUIRE(out.dim() == 2 && out.is_contiguous() && format.has_value() && *format != Format::kFloat16,
                "out has shape ", shape_of(out), "; expected a contiguous matrix in float32 or bfloat16");
  const Matrix w = units_matrix("values", values, scales, out.size(0), out.size(1));
  kernels().dequantize_units(threads(), w, *format, out.mutable_data_ptr());
}

constexpr size_t kLayerTensors = 20;

// One layer's tensors in the order of adept_fast/ops/step.py, an empty one for what is not there.
DecoderLayer decoder_layer(const Tensor* t, double eps, int64_t hidden, const CacheLayer& cache) {
  const auto optional = [](const Tensor& tensor) { return tensor.numel() ? OptionalTensor(tensor) : std::nullopt; };
  const int64_t intermediate = t[16].numel();
  return {norm("input_", t[0], t[1], eps, hidden),
          rows_matrix("w_qkv", t[2], optional(t[3]), 3 * hidden, hidden),
          vector("b_qkv", t[4], 3 * hidden),
          optional_norm("q_", optional(t[5]), optional(t[6]), eps, cache.head_dim),
          optional_norm("k_", optional(t[7]), optional(t[8]), eps, cache.head_dim),
          rows_matrix("w_dense", t[9], optional(t[10]), hidden, hidden),
          vector("b_dense", t[11], hidden),
          norm("mlp_", t[12], t[13], eps, hidden),
          rows_matrix("w_up", t[14], optional(t[15]), intermediate, hidden),
          vector("b_up", t[16], intermediate),
          units_matrix("w_down_t", t[17], optional(t[18]), intermediate, hidden),
          vector("b_down", t[19], hidden),
          cache};
}

Tensor decode_step(const Tensor& ids, const Tensor& slots, const Tensor& positions, const Tensor& embedding,
                   std::vector<Tensor> layers, const Tensor& cos, const Tensor& sin, Tensor cache,
                   const Tensor& final_gamma, const Tensor& final_beta, const Tensor& w, const OptionalTensor& scales,
                   int64_t rows, double eps, double scale, const OptionalTensor& counts) {
  ADEPT_REQUIRE(cache.dim() == 6 && cache.size(0) > 0 && layers.size() % kLayerTensors == 0 &&
                    cache.size(0) == int64_t(layers.size() / kLayerTensors),
                "layers has ", layers.size(), " tensors and the cache shape ", shape_of(cache), "; expected ",
                kLayerTensors, " for each of its layers");
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
    decoder.push_back(decoder_layer(&layers[size_t(i) * kLayerTensors], eps, hidden, layer));
    ADEPT_REQUIRE(layer.heads * layer.head_dim == hidden, "the cache has shape ", shape_of(cache), "; expected ",
                  hidden, " elements over its heads");
  }
  const CacheLayer& shape = decoder.front().cache;
  const RotaryTables tables(cos, sin, shape.head_dim);
  check_rows(rows);
  const Matrix head = rows_matrix("w", w, scales, rows, hidden);
  const int64_t* const slot_of = slot_indices(slots, tokens, shape.slots);
  const Tensor logits = torch::stable::new_empty(final_gamma, {tokens, rows});
  kernels().decode_step(
      threads(), {indices("ids", ids, slot_of, tokens, embedding.size(0)), slot_of,
                  indices("positions", positions, slot_of, tokens, std::min(tables.positions, shape.capacity)), tokens,
                  float_matrix("embedding", embedding, embedding.size(0), hidden), decoder.data(),
                  int64_t(decoder.size()), tables.cos, tables.sin, tables.half, float(scale),
                  norm("final_", final_gamma, final_beta, eps, hidden), head, counts_of(counts), output(logits)});
  return logits;
}

void update_decode_state(const Tensor& chosen, Tensor ids, Tensor slots, Tensor positions, const Tensor& limits,
                         const Tensor& ends, Tensor counts, Tensor token_ring) {
  const UpdateDecodeState operands =
      update_decode_state_operands(chosen, ids, slots, positions, limits, ends, counts, token_ring);
  indices("positions", positions, slot_indices(slots, operands.rows, operands.slot_count), operands.rows,
          kMaxCount + 1);
  for (int64_t row = 0; row < operands.rows; ++row)
    ADEPT_REQUIRE(operands.counts[row] >= 0 && operands.counts[row] <= kMaxCount, "counts holds ", operands.counts[row],
                  "; expected 0 to ", kMaxCount);
  update_rows(operands);
}

Tensor read(const Tensor& source) {
  ADEPT_REQUIRE(source.is_contiguous(), "read: source is not contiguous");
  const Tensor sum = torch::stable::new_empty(source, {1}, ScalarType::Int);
  const int64_t bytes = source.numel() * int64_t(source.element_size());
  *static_cast<int32_t*>(sum.mutable_data_ptr()) = kernels().read(threads(), source.const_data_ptr(), bytes);
  return sum;
}

}  // namespace
}  // namespace adept

STABLE_TORCH_LIBRARY(adept_fast, library) { adept::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(adept_fast, CPU, library) {
  library.impl("copy", TORCH_BOX(&adept::copy));
  library.impl("read", TORCH_BOX(&adept::read));
  library.impl("layernorm_qkv", TORCH_BOX(&adept::layernorm_qkv));
  library.impl("rotary_append", TORCH_BOX(&adept::rotary_append));
  library.impl("decode_attention", TORCH_BOX(&adept::decode_attention));
  library.impl("linear_residual", TORCH_BOX(&adept::linear_residual));
  library.impl("mlp", TORCH_BOX(&adept::mlp));
  library.impl("lm_head", TORCH_BOX(&adept::lm_head));
  library.impl("dequantize_units", TORCH_BOX(&adept::dequantize_units));
  library.impl("decode_step", TORCH_BOX(&adept::decode_step));
  library.impl("update_decode_state", TORCH_BOX(&adept::update_decode_state));
}

// What Python asks of the extension beside the operators: which instruction set they run on.
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

// What the CUDA operators need of torch and do not find; empty where there is nothing.
static PyObject* missing_for_cuda(PyObject*, PyObject*) {
#ifdef ADEPT_FAST_WITH_CUDA
  return PyUnicode_FromString(adept::cuda::stream_function().missing);
#else
  return PyUnicode_FromString("the extension is built without CUDA");
#endif
}

// What a decode step's kernels take on a GPU beside their operands; built without CUDA too, for planning.
static PyObject* cuda_step_bytes(PyObject*, PyObject* args) {
  long long rows, positions, hidden, intermediate, heads, head_dim, vocab;
  if (!PyArg_ParseTuple(args, "LLLLLLL", &rows, &positions, &hidden, &intermediate, &heads, &head_dim, &vocab))
    return nullptr;
  return PyLong_FromLongLong(
      adept::cuda::decode_step_bytes(rows, positions, hidden, intermediate, heads, head_dim, vocab));
}

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyMethodDef methods[] = {
      {"instruction_set", instruction_set, METH_NOARGS, nullptr},
      {"runnable_instruction_sets", runnable_instruction_sets, METH_NOARGS, nullptr},
      {"use_instruction_set", use_instruction_set, METH_O, nullptr},
      {"missing_for_cuda", missing_for_cuda, METH_NOARGS, nullptr},
      {"cuda_step_bytes", cuda_step_bytes, METH_VARARGS, nullptr},
      {nullptr, nullptr, 0, nullptr},
  };
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
