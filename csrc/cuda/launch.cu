#include "cuda/launch.cuh"

#include <cstdlib>
#include <cstring>

namespace adept::cuda {
namespace {

cudaError_t attribute(cudaDeviceAttr name, int* value) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaDeviceGetAttribute(value, name, device);
}

bool is_switched_off() {
  const char* wanted = std::getenv("ADEPT_FAST_OVERLAP");
  return wanted != nullptr && std::strcmp(wanted, "0") == 0;
}

}  // namespace

bool is_9_or_newer() {
  int major = 0;
  return attribute(cudaDevAttrComputeCapabilityMajor, &major) == cudaSuccess && major >= 9;
}

bool overlaps_launches() {
  static const bool switched_off = is_switched_off();
  return !switched_off && is_9_or_newer();
}

cudaError_t max_shared_bytes(size_t* bytes) {
  int value = 0;
  const cudaError_t error = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &value);
  *bytes = static_cast<size_t>(value);
  return error;
}

cudaError_t shared_bytes_beside_another(size_t* bytes) {
  constexpr size_t kReservedOfBlock = 1024;
  int value = 0;
  const cudaError_t error = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, &value);
  *bytes = static_cast<size_t>(value) / 2 - kReservedOfBlock - kStaticSharedBytes;
  return error;
}

cudaError_t multiprocessors(int* count) { return attribute(cudaDevAttrMultiProcessorCount, count); }

}  // namespace adept::cuda
