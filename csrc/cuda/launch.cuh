// Queues kernels, by default with programmatic dependent launch: a kernel may start before the previous one has ended.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace adept::cuda {

struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // of dynamic shared memory
};

// Whether a grid of x, y and z blocks is allowed; to be called before the numbers are narrowed to 32 bits.
inline bool fits_grid(int64_t x, int64_t y = 1, int64_t z = 1) {
  constexpr int64_t kMaxX = 0x7fffffff, kMaxOthers = 0xffff;
  return x <= kMaxX && y <= kMaxOthers && z <= kMaxOthers;
}

// Whether the current device is of capability 9.0 or newer.
bool is_9_or_newer();

// Whether programmatic dependent launch is used: on devices of capability 9.0 on, unless ADEPT_FAST_OVERLAP is 0.
bool overlaps_launches();

template <class... Parameters, class... Arguments>
cudaError_t launch(cudaStream_t stream, const Shape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute overlap[1] = {};
  overlap[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap[0].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = overlap;
  config.numAttrs = overlaps_launches() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Allows `kernel` that much dynamic shared memory; required above 48 kB.
template <class... Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(Parameters...), size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// The same for a kernel with a ring, on multiprocessors that give shared memory all they can: otherwise the next
// kernel's ring would not fit beside this one's.
template <class... Parameters>
cudaError_t allow_ring_bytes(void (*kernel)(Parameters...), size_t bytes) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  const auto most = static_cast<int>(cudaSharedmemCarveoutMaxShared);
  const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, most);
  return error != cudaSuccess ? error : allow_shared_bytes(kernel, bytes);
}

// The maximum of dynamic shared memory of a kernel on the current device.
cudaError_t max_shared_bytes(size_t* bytes);

constexpr size_t kStaticSharedBytes = 1024;  // at most, of a kernel that fills shared memory with a ring

// The maximum for two kernels on one multiprocessor at the same time.
cudaError_t shared_bytes_beside_another(size_t* bytes);

// Multiprocessors of the current device.
cudaError_t multiprocessors(int* count);

}  // namespace adept::cuda
