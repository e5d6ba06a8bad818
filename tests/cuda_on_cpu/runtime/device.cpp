// The part of the CUDA runtime that launchers call.

#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "streams.h"

namespace cuda_on_cpu {
namespace {

std::unordered_map<const void*, size_t> requested_shared_bytes;
cudaError_t last_error = cudaSuccess;

// 0 switches off what is on by default.
bool is_on(const char* variable) {
  const char* given = std::getenv(variable);
  return given == nullptr || std::atoi(given) != 0;
}

// ADEPT_CUDA_ON_CPU_PINNED, or 1: whether all memory is pinned.
bool is_pinned() { return is_on("ADEPT_CUDA_ON_CPU_PINNED"); }

}  // namespace

// ADEPT_CUDA_ON_CPU_MULTIPROCESSORS, or 4.
int multiprocessors() {
  const char* given = std::getenv("ADEPT_CUDA_ON_CPU_MULTIPROCESSORS");
  return given != nullptr ? std::max(1, std::atoi(given)) : 4;
}

bool has_bulk_copies() { return is_on("ADEPT_CUDA_ON_CPU_BULK"); }

size_t allowed_shared_bytes(const void* kernel) {
  const auto found = requested_shared_bytes.find(kernel);
  return found == requested_shared_bytes.end() ? kSharedBytes : std::max(kSharedBytes, found->second);
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = multiprocessors(); break;
    case cudaDevAttrComputeCapabilityMajor: *value = has_bulk_copies() ? 9 : 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = int(kMaxThreads); break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(kSharedBytes); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(kSharedBytesOnRequest); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(kSharedBytesOfMultiprocessor); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = int(kSharedBytesReserved); break;
    default: return remember(cudaErrorInvalidValue);  // nobody has needed it yet
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > kSharedBytesOnRequest) return remember(cudaErrorInvalidValue);
  requested_shared_bytes[kernel] = size_t(value);
  return cudaSuccess;
}

// By threads and shared memory; registers are not known here.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int block_size, size_t bytes) {
  if (block_size < 1 || uint64_t(block_size) > kMaxThreads) return remember(cudaErrorInvalidValue);
  const size_t by_memory = kSharedBytesOfMultiprocessor / (bytes + kSharedBytesReserved);
  *blocks = std::min({32, 2048 / ((block_size + 31) / 32 * 32), int(by_memory)});
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel, int block_size,
                                                                   size_t bytes, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, block_size, bytes);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const bool pinned = is_pinned();
  *attributes = {};
  attributes->type = pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  attributes->device = pinned ? 0 : cudaInvalidDeviceId;
  attributes->devicePointer = pinned ? const_cast<void*>(pointer) : nullptr;
  attributes->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode in_use = cudaStreamCaptureModeGlobal;
  std::swap(in_use, *mode);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorMisalignedAddress: return "misaligned address";
    case cudaErrorNotSupported: return "operation not supported";
    default: return "an error of the CUDA runtime";
  }
}

const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "a CPU that emulates");
  properties->major = has_bulk_copies() ? 9 : 8;
  properties->multiProcessorCount = multiprocessors();
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return queue(stream, [=] {
    std::memset(memory, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return queue(stream, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
}
