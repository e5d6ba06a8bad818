// Every operator's schema; adept_fast/ops/fake.py has the shapes and dtypes of their results.
#pragma once

#include <torch/csrc/stable/library.h>

namespace adept {

template <class Library>
void define_operators(Library& library) {
  library.def("copy(Tensor source) -> Tensor");
  library.def("read(Tensor source) -> Tensor");
  library.def(
      "layernorm_qkv(Tensor x, Tensor gamma, Tensor beta, float eps, Tensor w, Tensor? scales, Tensor b) -> Tensor");
  library.def(
      "rotary_append(Tensor qkv, Tensor? q_gamma, Tensor? q_beta, Tensor? k_gamma, Tensor? k_beta, float eps, "
      "Tensor cos, Tensor sin, Tensor slots, Tensor positions, Tensor(a!) cache_layer) -> Tensor");
  library.def(
      "decode_attention(Tensor q, Tensor cache_layer, Tensor slots, Tensor lengths, int longest, float scale) -> "
      "Tensor");
  library.def("prefill_attention(Tensor q, Tensor cache_layer, int slot, int start, float scale) -> Tensor");
  library.def("linear_residual(Tensor x, Tensor w, Tensor? scales, Tensor b, Tensor residual) -> Tensor");
  library.def(
      "mlp(Tensor x, Tensor gamma, Tensor beta, float eps, Tensor w_up, Tensor? up_scales, Tensor b_up, "
      "Tensor w_down_t, Tensor? down_scales, Tensor b_down, Tensor(a!)? counts, Tensor? slots=None, "
      "Tensor? residual=None) -> Tensor");
  library.def("lm_head(Tensor x, Tensor gamma, Tensor beta, float eps, Tensor w, Tensor? scales, int rows) -> Tensor");
  library.def(
      "decode_step(Tensor ids, Tensor slots, Tensor positions, Tensor embedding, Tensor[] layers, Tensor cos, "
      "Tensor sin, Tensor(a!) cache, Tensor final_gamma, Tensor final_beta, Tensor w, Tensor? scales, int rows, "
      "float eps, float scale, Tensor(b!)? counts) -> Tensor");
  library.def(
      "decode_layers(Tensor x, Tensor slots, Tensor positions, int longest, Tensor[] layers, Tensor cos, Tensor sin, "
      "Tensor(a!) cache, float eps, float scale, Tensor(b!)? counts, Tensor(c!) counters, bool one_kernel) -> Tensor");
  library.def(
      "sample(Tensor logits, Tensor slots, Tensor positions, Tensor temperature, Tensor top_k, Tensor top_p, "
      "Tensor min_p, Tensor repetition_penalty, Tensor frequency_penalty, Tensor presence_penalty, "
      "Tensor is_biased, Tensor seed, Tensor logit_bias, Tensor(a!) seen, Tensor(b!) counts) -> Tensor");
  library.def("token_logprobs(Tensor logits, Tensor chosen, int count) -> Tensor");
  library.def(
      "update_decode_state(Tensor chosen, Tensor(a!) ids, Tensor(b!) slots, Tensor(c!) positions, Tensor limits, "
      "Tensor ends, Tensor(d!) counts, Tensor(e!) token_ring) -> ()");
  library.def("embed(Tensor table, Tensor ids) -> Tensor");
  library.def(
      "prepare_rows(Tensor x, Tensor? gamma, Tensor? beta, float eps, int raised, int rows, ScalarType dtype) -> "
      "(Tensor, Tensor)");
  library.def(
      "activate_rows(Tensor product, Tensor powers, Tensor? scales, Tensor bias, int raised, int rows) -> "
      "(Tensor, Tensor)");
  library.def(
      "finish_rows(Tensor product, Tensor powers, Tensor? scales, Tensor? bias, bool relu_squared, Tensor? residual) "
      "-> "
      "Tensor");
  library.def("widen(Tensor w, Tensor? scales, int cols, int start, int stop, ScalarType dtype) -> Tensor");
}

}  // namespace adept
