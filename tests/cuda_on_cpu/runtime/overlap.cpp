#include "overlap.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "machine.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

struct Input {
  uintptr_t first;
  size_t bytes;
};

std::vector<Input> named;   // for the next operator
std::vector<Input> inputs;  // of this one

}  // namespace

void pdl_wait() {
  if (current->has_waited) fail("a thread calls pdl_wait a second time");
  current->has_waited = current->has_inputs = true;
}

void begin_operator() {
  inputs.swap(named);
  named.clear();
  races::began_operator();
}

void add_input(const void* memory, size_t bytes) { named.push_back({reinterpret_cast<uintptr_t>(memory), bytes}); }

bool is_input(const void* address) {
  return std::any_of(inputs.begin(), inputs.end(), [&](const Input& range) {
    return reinterpret_cast<uintptr_t>(address) - range.first < range.bytes;
  });
}

}  // namespace cuda_on_cpu
