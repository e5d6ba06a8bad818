// The operators that every device has: arguments are checked and become operands here, once for all devices.
//
// A Backend has what differs between devices: where arguments may be (Device, device_address), how matrices are packed
// (matrix), whether indices can be read and checked (slots, indices, max_positions), how many
// tokens a kernel takes (check_tokens), and the kernels (run).
#pragma once

#include <torch/csrc/stable/library.h>

#include "overlap.h"

namespace adept {

// While it lives, the operator's device is the current one. The first operand decides which it is; operands in
// `anywhere` need not be there. Refuses written operands that share memory with others.
template <class Backend>
class Checked {
 public:
  Checked(const Operand& first, Operands read, Operands written = {}, Operands anywhere = {})
      : device_(first, read, written) {
    Written all(written);
    all.add(anywhere);
    all.check_apart(read);
  }

  explicit Checked(Operands read, Operands written = {}) : Checked(*read.begin(), read, written) {}

 private:
  typename Backend::Device device_;
};

inline Linear linear(const TokenInputs& in, const Norm& norm, const Matrix& w, const float* bias, const float* residual,
                     const Tensor& out) {
  return {in.at(), in.tokens(), norm, w, bias, residual, false, output(out)};
}

inline TokenInputs attention_queries(const Tensor& q, const CacheLayer& layer) {
  ADEPT_REQUIRE(q.dim() == 3 && q.size(1) == layer.heads && q.size(2) == layer.head_dim, "q has shape ", shape_of(q),
                "; expected [tokens, ", layer.heads, ", ", layer.head_dim, "]");
  return TokenInputs("q", torch::stable::flatten(q, 1), layer.heads * layer.head_dim);
}

template <class Backend>
struct Operators {
  static Tensor layernorm_qkv(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w,
                              const OptionalTensor& scales, const Tensor& b) {
    const Operands read = {{"x", x}, {"gamma", gamma}, {"beta", beta}, {"w", w}, {"scales", scales}, {"b", b}};
    const Checked<Backend> checked(read);
    const int64_t hidden = gamma.numel(), rows = b.numel();
    const TokenInputs in("x", x, hidden);
    Backend::check_tokens(in.tokens());
    const Tensor out = in.empty({in.tokens(), rows});
    const Matrix matrix = Backend::matrix("w", Layout::kTiled, w, scales, rows, hidden);
    const Norm input_norm = norm("", gamma, beta, eps, hidden);
    Backend::run("layernorm_qkv", linear(in, input_norm, matrix, vector("b", b, rows), nullptr, out), out);
    return in.narrowed(out);
  }

  static Tensor linear_residual(const Tensor& x, const Tensor& w, const OptionalTensor& scales, const Tensor& b,
                                const Tensor& residual) {
    const Operands read = {{"x", x}, {"w", w}, {"scales", scales}, {"b", b}, {"residual", residual}};
    const Checked<Backend> checked(read);
    const int64_t rows = b.numel();
    ADEPT_REQUIRE(x.dim() == 2, "x has shape ", shape_of(x), "; expected [tokens, inputs]");
    const TokenInputs in("x", x, x.size(1)), added("residual", residual, rows);
    Backend::check_tokens(in.tokens());
    ADEPT_REQUIRE(in.tokens() == added.tokens(), "residual has shape ", shape_of(residual), "; expected [", in.tokens(),
                  ", ", rows, "]");
    const Tensor out = in.empty({in.tokens(), rows});
    const Matrix matrix = Backend::matrix("w", Layout::kTiled, w, scales, rows, x.size(1));
    Backend::run("linear_residual", linear(in, {}, matrix, vector("b", b, rows), added.at(), out), out);
    return in.narrowed(out);
  }

  static Tensor mlp(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w_up,
                    const OptionalTensor& up_scales, const Tensor& b_up, const Tensor& w_down_t,
                    const OptionalTensor& down_scales, const Tensor& b_down, const OptionalTensor& counts,
                    const OptionalTensor& slots, const OptionalTensor& residual) {
    const Operands read = {{"x", x},
                           {"gamma", gamma},
                           {"beta", beta},
                           {"w_up", w_up},
                           {"up_scales", up_scales},
                           {"b_up", b_up},
                           {"w_down_t", w_down_t},
                           {"down_scales", down_scales},
                           {"b_down", b_down},
                           {"slots", slots},
                           {"residual", residual}};
    const Checked<Backend> checked(read, {{"counts", counts}});
    const int64_t hidden = gamma.numel(), intermediate = b_up.numel();
    const TokenInputs in("x", x, hidden);
    Backend::check_tokens(in.tokens());
    std::optional<TokenInputs> added;
    if (residual) {
      added.emplace("residual", *residual, hidden);
      ADEPT_REQUIRE(in.tokens() == added->tokens(), "residual has shape ", shape_of(*residual), "; expected [",
                    in.tokens(), ", ", hidden, "]");
    }
    const Tensor out = in.empty({in.tokens(), hidden});
    const Mlp mlp{in.at(),
                  in.tokens(),
                  norm("", gamma, beta, eps, hidden),
                  Backend::matrix("w_up", Layout::kTiled, w_up, up_scales, intermediate, hidden),
                  vector("b_up", b_up, intermediate),
                  Backend::matrix("w_down_t", Layout::kTransposed, w_down_t, down_scales, intermediate, hidden),
                  vector("b_down", b_down, hidden),
                  counts_of(counts),
                  output(out),
                  slots ? unchecked_indices("slots", *slots, in.tokens()) : nullptr,
                  added ? added->at() : nullptr};
    Backend::run("mlp", mlp, out);
    return in.narrowed(out);
  }

  static Tensor lm_head(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, const Tensor& w,
                        const OptionalTensor& scales, int64_t rows) {
    const Operands read = {{"x", x}, {"gamma", gamma}, {"beta", beta}, {"w", w}, {"scales", scales}};
    const Checked<Backend> checked(read);
    const int64_t hidden = gamma.numel();
    const TokenInputs in("x", x, hidden);
    Backend::check_tokens(in.tokens());
    check_rows(rows);
    const Matrix head = Backend::matrix("w", Layout::kTiled, w, scales, rows, hidden);
    const Tensor out = in.empty({in.tokens(), rows});  // logits stay float32
    const Norm final_norm = norm("", gamma, beta, eps, hidden);
    Backend::run("lm_head", linear(in, final_norm, head, nullptr, nullptr, out), out);
    return out;
  }

  static Tensor rotary_append(const Tensor& qkv, const OptionalTensor& q_gamma, const OptionalTensor& q_beta,
                              const OptionalTensor& k_gamma, const OptionalTensor& k_beta, double eps,
                              const Tensor& cos, const Tensor& sin, const Tensor& slots, const Tensor& positions,
                              Tensor cache) {
    const Operands read = {{"qkv", qkv},         {"q_gamma", q_gamma}, {"q_beta", q_beta},
                           {"k_gamma", k_gamma}, {"k_beta", k_beta},   {"cos", cos},
                           {"sin", sin},         {"slots", slots},     {"positions", positions}};
    const Checked<Backend> checked(read, {{"cache_layer", cache}});
    const CacheLayer layer = cache_layer(cache);
    const TokenInputs in("qkv", qkv, 3 * layer.heads * layer.head_dim);
    const RotaryTables tables(cos, sin, layer.head_dim);
    const int64_t* const slot_of = Backend::slots(slots, in.tokens(), layer.slots);
    const int64_t end = Backend::max_positions(tables, layer);
    const Tensor q = in.empty({in.tokens(), layer.heads, layer.head_dim});
    const RotaryAppend append{in.at(),
                              in.tokens(),
                              optional_norm("q_", q_gamma, q_beta, eps, layer.head_dim),
                              optional_norm("k_", k_gamma, k_beta, eps, layer.head_dim),
                              tables.cos,
                              tables.sin,
                              tables.half,
                              slot_of,
                              Backend::indices("positions", positions, slot_of, in.tokens(), end),
                              layer,
                              output(q)};
    Backend::run("rotary_append", append, q);
    return in.narrowed(q);
  }

  static Tensor decode_attention(const Tensor& q, const Tensor& cache, const Tensor& slots, const Tensor& lengths,
                                 int64_t longest, double scale) {
    const Operands read = {{"q", q}, {"cache_layer", cache}, {"slots", slots}, {"lengths", lengths}};
    const Checked<Backend> checked(read);
    const CacheLayer layer = cache_layer(cache);
    const TokenInputs in = attention_queries(q, layer);
    ADEPT_REQUIRE(longest >= 0 && longest <= layer.capacity, "longest is ", longest, "; expected 0 to ",
                  layer.capacity);
    const int64_t* const slot_of = Backend::slots(slots, in.tokens(), layer.slots);
    const Tensor out = in.empty({in.tokens(), layer.heads * layer.head_dim});
    const DecodeAttention attention{in.at(),
                                    in.tokens(),
                                    layer,
                                    slot_of,
                                    Backend::indices("lengths", lengths, slot_of, in.tokens(), longest + 1),
                                    longest,
                                    float(scale),
                                    output(out)};
    Backend::run("decode_attention", attention, out);
    return in.narrowed(out);
  }

  static void update_decode_state(const Tensor& chosen, Tensor ids, Tensor slots, Tensor positions,
                                  const Tensor& limits, const Tensor& ends, Tensor counts, Tensor token_ring) {
    const Operands read = {{"chosen", chosen}, {"limits", limits}, {"ends", ends}};
    const Operands written = {{"ids", ids}, {"slots", slots}, {"positions", positions}, {"counts", counts}};
    const Checked<Backend> checked({"ids", ids}, read, written, {{"token_ring", token_ring}});
    const int64_t rows = chosen.numel();
    UpdateDecodeState state = {};
    state.chosen = unchecked_indices("chosen", chosen, rows);
    state.rows = rows;
    state.ids = mutable_indices("ids", ids, rows);
    state.slots = mutable_indices("slots", slots, rows);
    state.positions = mutable_indices("positions", positions, rows);
    state.limits = unchecked_indices("limits", limits, rows);
    state.counts = mutable_indices("counts", counts, rows);
    ADEPT_REQUIRE(ends.dim() == 2 && ends.numel() > 0 && ends.is_contiguous(), "ends has shape ", shape_of(ends),
                  "; expected contiguous [slots, vocab], each 1 or more");
    check_dtype("ends", ends, ScalarType::Bool);
    state.ends = data<bool>("ends", ends);
    state.slot_count = ends.size(0);
    state.vocab = ends.size(1);
    ADEPT_REQUIRE(
        token_ring.dim() == 2 && token_ring.size(0) == rows && token_ring.size(1) > 0 && token_ring.is_contiguous(),
        "token_ring has shape ", shape_of(token_ring), "; expected contiguous [", rows, ", 1 or more]");
    check_dtype("token_ring", token_ring, ScalarType::Long);
    data<int64_t>("token_ring", token_ring);
    state.token_ring = static_cast<int64_t*>(Backend::device_address("token_ring", token_ring, ids));
    state.depth = token_ring.size(1);
    Backend::run("update_decode_state", state, ids);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("layernorm_qkv", TORCH_BOX(&Operators::layernorm_qkv));
    library.impl("linear_residual", TORCH_BOX(&Operators::linear_residual));
    library.impl("mlp", TORCH_BOX(&Operators::mlp));
    library.impl("lm_head", TORCH_BOX(&Operators::lm_head));
    library.impl("rotary_append", TORCH_BOX(&Operators::rotary_append));
    library.impl("decode_attention", TORCH_BOX(&Operators::decode_attention));
    library.impl("update_decode_state", TORCH_BOX(&Operators::update_decode_state));
  }
};

}  // namespace adept
