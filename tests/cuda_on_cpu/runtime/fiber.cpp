#include "fiber.h"

#include <sys/mman.h>

#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t kGuardBytes = 4096;  // below a stack, never accessible: an overflow ends the process at once
constexpr int kGuarded = 8 * 1024;    // the kernel does not keep apart many more ranges; one code runs on all stacks
constexpr size_t kPitch = kStackBytes + kGuardBytes;

// The scheduler runs on the thread's own stack. AddressSanitizer wants to know where that is.
struct Scheduler {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

Scheduler scheduler;
char* all_stacks = nullptr;
int stacks = 0;  // that fibers have

char* next_stack() {
  if (all_stacks == nullptr) {
    void* memory = mmap(nullptr, kPitch * kMaxFibers, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stacks of CUDA threads");
    all_stacks = static_cast<char*>(memory);
  }
  if (stacks == kMaxFibers) throw std::runtime_error("more CUDA threads are under way than there are stacks");
  char* stack = all_stacks + kPitch * static_cast<size_t>(stacks) + kGuardBytes;
  const size_t guard_bytes = stacks++ < kGuarded ? 0 : kGuardBytes;
  if (mprotect(stack - guard_bytes, kStackBytes + guard_bytes, PROT_READ | PROT_WRITE) != 0) {
    throw std::runtime_error("no memory for the stack of a CUDA thread");
  }
  return stack;
}

}  // namespace

// What a function keeps for its caller is pushed, the stacks are changed over, and the other side's is popped.
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch(void** from, void** to);
asm(R"(
.text
.hidden cuda_on_cpu_switch
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");

void prepare(Fiber& fiber, void (*entry)()) {
  if (fiber.stack == nullptr) fiber.stack = next_stack();
  auto* top = reinterpret_cast<uint64_t*>(fiber.stack + kStackBytes - 64);
  *--top = 0;  // where `entry` would return to; it also aligns the stack as after a call
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int kept = 0; kept < 6; ++kept) *--top = 0;
  fiber.stack_pointer = top;
  fiber.fake_stack = nullptr;
}

void resume(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, fiber.stack, kStackBytes);
#endif
  cuda_on_cpu_switch(&scheduler.stack_pointer, &fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

void suspend(Fiber& fiber, bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &fiber.fake_stack, scheduler.stack, scheduler.stack_bytes);
#else
  (void)ends;
#endif
  cuda_on_cpu_switch(&fiber.stack_pointer, &scheduler.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler.stack, &scheduler.stack_bytes);
#endif
}

void entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
#endif
}

bool is_on_a_stack(uintptr_t address) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(all_stacks);
  return address - first < kPitch * kMaxFibers;
}

}  // namespace cuda_on_cpu
