// The operators for tensors on an NVIDIA GPU; their schemas stand in ops.cpp. Compiled only where there is nvcc.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/launchers.h"

// Weak, so that a torch without CUDA, which has no such function, loads this file too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace {

using torch::stable::Tensor;

cudaStream_t current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch was built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error, const char* operation) {
  STD_TORCH_CHECK(error == cudaSuccess, operation, ": ", cudaGetErrorString(error));
}

Tensor copy(const Tensor& source) {
  STD_TORCH_CHECK(source.is_contiguous(), "copy: source is not contiguous");
  const torch::stable::accelerator::DeviceGuard guard(source.get_device_index());
  Tensor copied = torch::stable::empty_like(source);
  const size_t bytes = static_cast<size_t>(source.numel()) * source.element_size();
  check(adept_cuda_copy(source.const_data_ptr(), copied.mutable_data_ptr(), bytes, current_stream(source)), "copy");
  return copied;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adept_fast, CUDA, library) { library.impl("copy", TORCH_BOX(&copy)); }
