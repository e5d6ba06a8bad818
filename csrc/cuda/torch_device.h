// A tensor's device, for the bindings. The tests that run the kernels on a CPU replace this file.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/torch_stream.h"

namespace adept::cuda {

// While it lives, the current device is the tensor's.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline bool is_on_device(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

inline bool is_beside(const torch::stable::Tensor& one, const torch::stable::Tensor& other) {
  return other.is_cuda() && other.get_device_index() == one.get_device_index();
}

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  const StreamLookup lookup = stream_function();
  STD_TORCH_CHECK(lookup.function != nullptr, lookup.missing);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(lookup.function(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace adept::cuda
