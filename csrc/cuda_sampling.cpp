// The bindings of sample and token_logprobs.
#include "cuda_ops.h"

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/torch_arguments.h"
#include "cuda/workspace.h"

namespace adept::cuda_ops {
namespace {

using cuda::current_stream;

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
  const OnOneDevice device(*read.begin(), read, {{"seen", seen}, {"counts", counts}});
  Written({{"seen", seen}, {"counts", counts}}).check_apart(read);
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
  const OnOneDevice device({"logits", logits}, {{"chosen", chosen}});
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

void implement_sampling(torch::stable::detail::StableLibrary& library) {
  library.impl("sample", TORCH_BOX(&sample));
  library.impl("token_logprobs", TORCH_BOX(&token_logprobs));
}

}  // namespace adept::cuda_ops
