#include "launch.h"

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <utility>

#include "device.h"
#include "memory.h"
#include "order.h"
#include "races.h"
#include "streams.h"

namespace cuda_on_cpu {
namespace {

cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 &grid = config.gridDim, &size = config.blockDim;
  const bool empty = size.x == 0 || size.y == 0 || size.z == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (empty || uint64_t{size.x} * size.y * size.z > kMaxThreads || size.x > 1024 || size.y > 1024 || size.z > 64 ||
      grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  return config.dynamicSmemBytes > allowed_shared_bytes(kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

bool overlaps(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      return attribute.val.programmaticStreamSerializationAllowed != 0;
    }
  }
  return false;
}

// Exactly as large as was asked for, so that AddressSanitizer sees what is past its end.
class DynamicShared {
 public:
  explicit DynamicShared(size_t bytes) {
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 128, bytes) != 0) throw std::bad_alloc();
    block.dynamic_shared = static_cast<char*>(memory);
    block.dynamic_shared_bytes = bytes;
  }
  DynamicShared(const DynamicShared&) = delete;
  DynamicShared& operator=(const DynamicShared&) = delete;
  ~DynamicShared() {
    free(block.dynamic_shared);
    block.dynamic_shared = nullptr;
    block.dynamic_shared_bytes = 0;
  }
};

// While it lives, kernels run; a failure leaves the scheduler as if there had been none.
class Running {
 public:
  Running() {
    if (is_running) throw std::logic_error("a kernel is launched while another runs");
    is_running = true;
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running() {
    is_running = false;
    current = nullptr;
  }

 private:
  static inline bool is_running = false;
};

void run_blocks(dim3 grid, dim3 size, size_t shared_bytes, bool overlaps, void (*body)(void*), void* context) {
  const Running running;
  const DynamicShared dynamic_shared(shared_bytes);
  block.size = size;
  block.grid = grid;
  block.overlaps = overlaps;
  set_order(grid.x * grid.y * grid.z, (size.x * size.y * size.z + kWarp - 1) / kWarp);
  races::began_launch();
  for (const unsigned number : block_order()) {
    block.number = number;
    block.index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    poison_shared();
    run_block(body, context);
  }
}

}  // namespace

cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const Call& call) {
  if (const cudaError_t error = check(config, kernel)) return remember(error);
  const dim3 grid = config.gridDim, size = config.blockDim;
  const size_t bytes = config.dynamicSmemBytes;
  const bool is_overlapping = overlaps(config);
  if (!is_capturing(config.stream)) {
    run_blocks(grid, size, bytes, is_overlapping, call.body, call.context);
    return cudaSuccess;
  }
  // Arguments and attributes are the caller's, who may be gone when a graph is replayed.
  const std::shared_ptr<void> kept(call.copy(call.context), call.destroy);
  return queue(config.stream, [=, body = call.body] {
    run_blocks(grid, size, bytes, is_overlapping, body, kept.get());
    return cudaSuccess;
  });
}

}  // namespace cuda_on_cpu
