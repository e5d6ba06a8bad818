// cp.async: a copy that is under way until its thread has waited for it, or an arrival of its has come.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

// The target holds rubbish from now on, and what is copied only after the wait: a wait that is missing shows, and
// so does a target that others still read.
void start_copy(void* shared, const void* global, uint32_t bytes);
void end_copy_group();
void wait_for_copy_groups(int pending);

// Arrives at an mbarrier once all copies of this thread so far have landed, which they then do by themselves.
void arrive_after_copies(uint64_t* barrier);
size_t arrivals_under_way();
void land_before_arrival(size_t number);

// Forgets what the block before has left under way.
void drop_copies(int thread_count);

}  // namespace cuda_on_cpu
