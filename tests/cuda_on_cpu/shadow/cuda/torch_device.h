// The twin of csrc/cuda/torch_device.h: a device whose tensors are those of the CPU.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>

#include "runtime/overlap.h"

namespace adept::cuda {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor&) { ::cuda_on_cpu::begin_operator(); }
};

// Every tensor is asked about, as one of the host's would be on a GPU.
inline bool is_on_device(const torch::stable::Tensor&) { return false; }

// All are, but the one that begins at ADEPT_CUDA_ON_CPU_ELSEWHERE.
inline bool is_beside(const torch::stable::Tensor&, const torch::stable::Tensor& other) {
  const char* elsewhere = std::getenv("ADEPT_CUDA_ON_CPU_ELSEWHERE");
  return elsewhere == nullptr ||
         std::strtoull(elsewhere, nullptr, 0) != reinterpret_cast<uintptr_t>(other.const_data_ptr());
}

inline cudaStream_t current_stream(const torch::stable::Tensor&) { return nullptr; }

}  // namespace adept::cuda
