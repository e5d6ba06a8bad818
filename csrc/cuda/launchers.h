// What the bindings may call of the CUDA kernels: raw pointers and a stream, nothing of torch.
//
// Each launcher only queues its work. It gives back the error of the launch; an error of the kernel itself shows
// at the next synchronization.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

extern "C" {

// Copies `bytes` bytes between memory of the current device; the two ranges may not overlap.
cudaError_t adept_cuda_copy(const void* from, void* to, size_t bytes, cudaStream_t stream);
}
