// For tensors on an NVIDIA GPU, the operators are those of cuda_ops.cpp.
#include "cuda_ops.h"

STABLE_TORCH_LIBRARY_IMPL(adept_fast, CUDA, library) { adept::cuda_ops::implement_operators(library); }
