// The device's memory: the host's, of which so much is given out as a device would have.

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "device.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kAlignment = 256;

std::unordered_map<void*, size_t> allocations;
size_t allocated_bytes = 0;

// ADEPT_CUDA_ON_CPU_MEMORY, or 1 GiB.
size_t memory_bytes() {
  const char* given = std::getenv("ADEPT_CUDA_ON_CPU_MEMORY");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : size_t{1} << 30;
}

}  // namespace
}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (bytes > memory_bytes() - allocated_bytes || posix_memalign(memory, kAlignment, bytes) != 0) {
    return remember(cudaErrorMemoryAllocation);
  }
  std::memset(*memory, 0xff, bytes);  // what nobody has written is NaN in every float format
  allocations[*memory] = bytes;
  allocated_bytes += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return remember(cudaErrorInvalidValue);
  allocated_bytes -= found->second;
  allocations.erase(found);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory != nullptr ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* all_bytes) {
  *all_bytes = memory_bytes();
  *free_bytes = *all_bytes - allocated_bytes;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
}
