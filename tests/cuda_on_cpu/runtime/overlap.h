// Kernels that start before the one before them has ended (programmatic dependent launch).
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

// griddepcontrol.wait. Each thread may call it once.
void pdl_wait();

// What launches before this have written is no input of this operator, unless it is named as one.
void begin_operator();

// Names memory that an earlier kernel may still be writing while the next operator's kernels start. The build that
// looks for races lets a thread touch it only after pdl_wait.
void add_input(const void* memory, size_t bytes);

// Whether no thread may touch this address yet that has not waited.
bool is_input(const void* address);

}  // namespace cuda_on_cpu
