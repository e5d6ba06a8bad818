// The CUDA operators as adept_fast_cuda_on_cpu::*, for tensors of a CPU.
#include <cstddef>

#include "cuda_ops.h"
#include "runtime/overlap.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(adept_fast_cuda_on_cpu, library) { adept::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(adept_fast_cuda_on_cpu, CPU, library) { adept::cuda_ops::implement_operators(library); }

// For the tests, by ctypes.
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_add_input(const void* memory, size_t bytes) {
  cuda_on_cpu::add_input(memory, bytes);
}
