#include "launch.h"

#include <cstdlib>
#include <deque>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

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

// A block that is under way.
struct BlockUnderWay {
  Block block;
  std::unique_ptr<char, void (*)(void*)> dynamic_shared{nullptr, free};
  std::vector<char> static_shared;  // while it is set aside
};

// While it lives, kernels run; a failure leaves the scheduler as if there had been none.
class Grid {
 public:
  Grid(dim3 grid, dim3 size, size_t shared_bytes, bool overlaps) {
    if (is_running) throw std::logic_error("a kernel is launched while another runs");
    is_running = true;
    block = {};
    block.size = size;
    block.grid = grid;
    block.dynamic_shared_bytes = shared_bytes;
    block.overlaps = overlaps;
    block.has_bulk_copies = has_bulk_copies();
  }
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;
  ~Grid() {
    is_running = false;
    current = nullptr;
    block.dynamic_shared = nullptr;
    block.dynamic_shared_bytes = 0;
  }

  void run(void (*body)(void*), void* context) {
    const dim3 &grid = block.grid, &size = block.size;
    set_order(grid.x * grid.y * grid.z, (size.x * size.y * size.z + kWarp - 1) / kWarp);
    races::began_launch();
    for (const unsigned number : block_order()) {
      while (perhaps() && continue_one()) {
      }
      start(number, body, context);
    }
    while (!set_aside_.empty()) {
      if (continue_one()) continue;
      block = slots_[set_aside_.front()].block;
      fail_waiting();
    }
  }

 private:
  void start(unsigned number, void (*body)(void*), void* context) {
    if (free_.empty()) {
      free_.push_back(static_cast<unsigned>(slots_.size()));
      slots_.emplace_back();
    }
    block.slot = free_.back();
    free_.pop_back();
    block.number = number;
    block.index = {number % block.grid.x, number / block.grid.x % block.grid.y, number / (block.grid.x * block.grid.y)};
    allocate_dynamic_shared();
    poison_shared();
    begin_block(body, context);
    run_current();
  }

  // Exactly as large as was asked for, so that AddressSanitizer sees what is past its end.
  void allocate_dynamic_shared() {
    auto& owned = slots_[block.slot].dynamic_shared;
    void* memory = owned.get();
    if (memory == nullptr && block.dynamic_shared_bytes > 0) {
      if (posix_memalign(&memory, 128, block.dynamic_shared_bytes) != 0) throw std::bad_alloc();
      owned.reset(static_cast<char*>(memory));
    }
    block.dynamic_shared = owned.get();
  }

  void run_current() {
    if (run_block()) return free_.push_back(block.slot);
    slots_[block.slot].block = block;
    slots_[block.slot].static_shared = copy_static_shared();
    set_aside_.push_back(block.slot);
  }

  // Runs a block that was set aside and can go on; false if there is none.
  bool continue_one() {
    const size_t count = set_aside_.size();
    const size_t first = count > 0 ? pick(static_cast<unsigned>(count)) : 0;
    for (size_t i = 0; i < count; ++i) {
      const auto found = set_aside_.begin() + static_cast<std::ptrdiff_t>((first + i) % count);
      block = slots_[*found].block;
      if (!wake_for_counters()) continue;
      restore_static_shared(slots_[*found].static_shared);
      set_aside_.erase(found);
      run_current();
      return true;
    }
    return false;
  }

  static inline bool is_running = false;
  std::deque<BlockUnderWay> slots_;
  std::vector<unsigned> free_;
  std::vector<unsigned> set_aside_;  // the slots
};

}  // namespace

cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const Call& call) {
  if (const cudaError_t error = check(config, kernel)) return remember(error);
  const dim3 grid = config.gridDim, size = config.blockDim;
  const size_t bytes = config.dynamicSmemBytes;
  const bool is_overlapping = overlaps(config);
  if (!is_capturing(config.stream)) {
    Grid(grid, size, bytes, is_overlapping).run(call.body, call.context);
    return cudaSuccess;
  }
  // Arguments and attributes are the caller's, who may be gone when a graph is replayed.
  const std::shared_ptr<void> kept(call.copy(call.context), call.destroy);
  return queue(config.stream, [=, body = call.body] {
    Grid(grid, size, bytes, is_overlapping).run(body, kept.get());
    return cudaSuccess;
  });
}

}  // namespace cuda_on_cpu
