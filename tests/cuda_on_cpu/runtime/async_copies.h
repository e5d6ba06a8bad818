// cp.async: a copy that is under way until its thread has waited for it.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

// The target holds rubbish from now on, and what is copied only after the wait: a wait that is missing shows, and
// so does a target that others still read.
void start_copy(void* shared, const void* global, uint32_t bytes);
void end_copy_group();
void wait_for_copy_groups(int pending);

// Forgets what the block before has left under way.
void drop_copies(int thread_count);

}  // namespace cuda_on_cpu
