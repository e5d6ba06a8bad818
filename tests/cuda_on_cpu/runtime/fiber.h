// One stack for each CUDA thread of a block, and the switch between them and the scheduler.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;       // its lowest byte
  void* fake_stack = nullptr;  // AddressSanitizer's
};

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kMaxFibers = 64 * 1024;

// Makes the next `resume` begin `entry` on an empty stack, which is the fiber's from its first use on.
void prepare(Fiber& fiber, void (*entry)());

// From the scheduler to a fiber; comes back when that fiber suspends.
void resume(Fiber& fiber);

// From the running fiber back to the scheduler. `ends`: nothing will resume it.
void suspend(Fiber& fiber, bool ends);

// To be called first thing in a fiber's entry.
void entered();

// Whether an address is on one of the stacks: a CUDA thread's own memory.
bool is_on_a_stack(uintptr_t address);

}  // namespace cuda_on_cpu
