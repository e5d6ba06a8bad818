// The device that the runtime API tells of: an H100 with few multiprocessors, so that grids which fill it loop.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

constexpr uint64_t kMaxThreads = 1024;  // of a block
constexpr size_t kSharedBytes = 48 * 1024;
constexpr size_t kSharedBytesOnRequest = 227 * 1024;
constexpr size_t kSharedBytesOfMultiprocessor = 228 * 1024;
constexpr size_t kSharedBytesReserved = 1024;  // of each block

int multiprocessors();

// Whether the device is one of capability 9.0: ADEPT_CUDA_ON_CPU_BULK, or 1. Else it is one of 8.0.
bool has_bulk_copies();

// How much dynamic shared memory a kernel may have.
size_t allowed_shared_bytes(const void* kernel);

// Keeps an error for cudaGetLastError, and gives it back.
cudaError_t remember(cudaError_t error);

}  // namespace cuda_on_cpu
