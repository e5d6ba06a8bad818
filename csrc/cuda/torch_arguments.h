// What the bindings of the CUDA operators share: errors, the device of the arguments, and workspaces.
#pragma once

#include "cuda/torch_device.h"
#include "overlap.h"

namespace adept::cuda_ops {

inline void check(cudaError_t error, const char* operation) {
  ADEPT_REQUIRE(error == cudaSuccess, operation, ": ", cudaGetErrorString(error));
}

// While it lives, the current device is that of the first operand. Refuses operands on other devices.
class OnOneDevice {
 public:
  OnOneDevice(const Operand& first, Operands others, Operands written = {}) : device_(on_a_gpu(first)) {
    check(first, others);
    check(first, written);
  }

 private:
  static const Tensor& on_a_gpu(const Operand& first) {
    check_given(first);
    ADEPT_REQUIRE(cuda::is_beside(*first.tensor, *first.tensor), first.name,
                  " is not on a GPU, where another argument is; expected all on one device");
    return *first.tensor;
  }

  static void check(const Operand& first, Operands others) {
    for (const Operand& other : others) {
      if (other.tensor == nullptr) continue;
      check_given(other);
      ADEPT_REQUIRE(cuda::is_beside(*first.tensor, *other.tensor), other.name, " is not on the device of ", first.name,
                    "; expected all on one");
    }
  }

  // Python's None arrives as an undefined tensor.
  static void check_given(const Operand& operand) {
    ADEPT_REQUIRE(operand.tensor->defined(), operand.name, " is None; expected a tensor");
  }

  cuda::OnDeviceOf device_;
};

// Workspace of a kernel; torch reuses the memory in stream order.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes) : memory_(torch::stable::new_empty(like, {bytes}, ScalarType::Byte)) {}

  void* data() const { return memory_.mutable_data_ptr(); }

 private:
  Tensor memory_;
};

}  // namespace adept::cuda_ops
