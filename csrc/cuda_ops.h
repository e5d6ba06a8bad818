// Registers the CUDA operators.
#pragma once

#include <torch/csrc/stable/library.h>

namespace adept::cuda_ops {

void implement_operators(torch::stable::detail::StableLibrary& library);
void implement_sampling(torch::stable::detail::StableLibrary& library);
void implement_gemm_rows(torch::stable::detail::StableLibrary& library);
void implement_decode_layers(torch::stable::detail::StableLibrary& library);

}  // namespace adept::cuda_ops
