// cp.async.bulk: copies of many bytes that land in any order, on an mbarrier.
#pragma once

#include <cstdint>

namespace cuda_on_cpu {

// The target holds rubbish from now on; the source is read when the copy lands, which is as late as can be, or at some
// point if the order is shuffled.
void start_bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);

// For the scheduler: something that is under way lands, or an arrival that waits for copies comes. False if there is
// nothing.
bool land_one();
void land_perhaps();

void forget_bulk_copies();
void check_bulk_copies_at_end();

}  // namespace cuda_on_cpu
