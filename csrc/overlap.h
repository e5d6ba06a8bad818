// Refuses arguments that share memory with one that the operator writes: indices are read again after they have been
// checked, and tasks read rows while others write.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "arguments.h"

namespace adept {

// One argument of an operator.
struct Operand {
  Operand(const char* name, const Tensor& tensor) : name(name), tensor(&tensor) {}
  Operand(const char* name, const OptionalTensor& tensor) : name(name), tensor(tensor ? &*tensor : nullptr) {}

  const char* name;
  const Tensor* tensor;  // null if it is not given
};

using Operands = std::initializer_list<Operand>;

// The memory from a tensor's first element to its last; [0, 0) if it is empty.
struct MemoryRange {
  uintptr_t begin = 0, end = 0;

  bool overlaps(const MemoryRange& other) const { return begin < other.end && other.begin < end; }
};

inline MemoryRange memory_of(const Tensor& tensor) {
  int64_t elements = tensor.numel();
  if (elements == 0) return {};
  if (!tensor.is_contiguous()) {
    elements = 1;
    for (int64_t i = 0; i < tensor.dim(); ++i) elements += (tensor.size(i) - 1) * tensor.stride(i);
  }
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + uintptr_t(elements) * tensor.element_size()};
}

// The operands that an operator writes; they are contiguous.
class Written {
 public:
  // Refuses operands that overlap with each other.
  explicit Written(Operands operands) { add(operands); }

  void add(Operands operands) {
    for (const Operand& operand : operands) {
      if (operand.tensor == nullptr) continue;
      const MemoryRange memory = memory_of(*operand.tensor);
      check_apart(operand.name, memory);
      ranges_[count_++] = {operand.name, memory};
    }
  }

  // Refuses a read operand that overlaps with a written one.
  void check_apart(const char* name, const Tensor& read) const {
    if (count_ > 0) check_apart(name, memory_of(read));
  }

  void check_apart(Operands read) const {
    for (const Operand& operand : read)
      if (operand.tensor != nullptr) check_apart(operand.name, *operand.tensor);
  }

 private:
  struct Range {
    const char* name;
    MemoryRange memory;
  };

  void check_apart(const char* name, const MemoryRange& memory) const {
    for (int i = 0; i < count_; ++i)
      ADEPT_REQUIRE(!ranges_[i].memory.overlaps(memory), ranges_[i].name, " shares memory with ", name,
                    "; expected memory of its own, since it is written");
  }

  static constexpr int kMax = 5;  // those of update_decode_state
  Range ranges_[kMax];
  int count_ = 0;
};

}  // namespace adept
