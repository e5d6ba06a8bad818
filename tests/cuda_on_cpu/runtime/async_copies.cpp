#include "async_copies.h"

#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "machine.h"
#include "memory.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

constexpr uint32_t kCopied = 16;

struct Copy {
  void* to;
  std::array<unsigned char, kCopied> bytes;
};

// The groups of a thread, oldest first; the last is still open.
using Groups = std::deque<std::vector<Copy>>;

std::vector<Groups> under_way;

Groups& groups() { return under_way[current->number]; }

}  // namespace

void start_copy(void* shared, const void* global, uint32_t bytes) {
  if (bytes > kCopied) fail("an asynchronous copy of more than 16 bytes");
  check_aligned(shared, kCopied);
  check_aligned(global, kCopied);
  if (!is_shared(shared)) fail("an asynchronous copy to what is not shared memory");
  Copy copy{shared, {}};
  if (bytes > 0) races::read(global, bytes);
  races::written(shared, kCopied);
  std::memcpy(copy.bytes.data(), global, bytes);
  std::memset(shared, 0xff, kCopied);
  groups().back().push_back(copy);
}

void end_copy_group() { groups().emplace_back(); }

void wait_for_copy_groups(int pending) {
  while (static_cast<int>(groups().size()) - 1 > pending) {
    for (const Copy& copy : groups().front()) {
      races::written(copy.to, kCopied);
      std::memcpy(copy.to, copy.bytes.data(), kCopied);
    }
    groups().pop_front();
  }
}

void drop_copies(int thread_count) {
  under_way.resize(static_cast<size_t>(kMaxFibers));
  for (int i = 0; i < thread_count; ++i) {
    if (under_way[i].size() != 1 || !under_way[i].front().empty()) under_way[i].assign(1, {});
  }
}

}  // namespace cuda_on_cpu
