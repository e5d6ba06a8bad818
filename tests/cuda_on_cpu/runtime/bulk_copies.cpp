#include "bulk_copies.h"

#include <cstring>
#include <string>
#include <vector>

#include "async_copies.h"
#include "machine.h"
#include "mbarriers.h"
#include "memory.h"
#include "order.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

constexpr uint32_t kUnit = 16;  // of addresses and bytes

struct BulkCopy {
  char* to;
  const char* from;
  uint32_t bytes;
  uint64_t* barrier;
  int thread;
};

PerBlock<std::vector<BulkCopy>> bulk_copies;

}  // namespace

void start_bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  auto* const to = static_cast<char*>(shared);
  if (!block.has_bulk_copies) fail("a bulk copy on a device that has none");
  if (bytes == 0 || bytes % kUnit != 0) {
    fail("a bulk copy of " + std::to_string(bytes) + " bytes, which are no multiple of 16");
  }
  check_aligned(shared, kUnit);
  check_aligned(global, kUnit);
  if (!is_shared(to) || !is_shared(to + bytes - 1)) fail("a bulk copy to what is not shared memory");
  if (is_shared(global)) fail("a bulk copy from what is not global memory");
  check_shown(barrier);
  const MbarrierPhase lands = phase_of_mbarrier(barrier);
  races::copied(shared, global, bytes, lands.number, lands.phase);
  static std::vector<char> read;  // at once, too, so that AddressSanitizer sees who reads past an end
  read.assign(static_cast<const char*>(global), static_cast<const char*>(global) + bytes);
  std::memset(shared, 0xff, bytes);
  bulk_copies->push_back({to, static_cast<const char*>(global), bytes, barrier, current->number});
}

bool land_one() {
  std::vector<BulkCopy>& copies = *bulk_copies;
  const size_t count = copies.size() + arrivals_under_way();
  if (count == 0) return false;
  const size_t picked = pick(static_cast<unsigned>(count));
  if (picked >= copies.size()) {
    land_before_arrival(picked - copies.size());
    return true;
  }
  const BulkCopy copy = copies[picked];
  copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(picked));
  current = &thread_of_block(copy.thread);
  std::memcpy(copy.to, copy.from, copy.bytes);
  land_on_mbarrier(copy.barrier, copy.bytes);
  return true;
}

void land_perhaps() {
  if (!bulk_copies->empty() || arrivals_under_way() > 0) {
    if (perhaps()) land_one();
  }
}

void forget_bulk_copies() { bulk_copies->clear(); }

void check_bulk_copies_at_end() {
  if (!bulk_copies->empty()) {
    current = &thread_of_block(bulk_copies->front().thread);
    fail("a bulk copy is under way when the block ends");
  }
  if (arrivals_under_way() > 0) fail("an arrival after copies is under way when the block ends");
}

}  // namespace cuda_on_cpu
