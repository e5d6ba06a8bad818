// mbarriers: barriers in shared memory whose phases end with arrivals and with bytes that have landed.
#pragma once

#include <cstdint>
#include <string>

#include "machine.h"

namespace cuda_on_cpu {

void init_mbarrier(uint64_t* barrier, uint32_t arrivals);

// Shows the engine that copies what this thread has initialised.
void show_mbarriers();

// Arrives, and announces bytes that will land in this phase.
void arrive_at_mbarrier(uint64_t* barrier, uint32_t bytes = 0);
void wait_for_mbarrier(uint64_t* barrier, uint32_t parity);

// The barrier that a copy is to land on, and its phase.
struct MbarrierPhase {
  uint32_t number;  // in the order in which the block initialised them
  uint64_t phase;
};
MbarrierPhase phase_of_mbarrier(const uint64_t* barrier);

// Fails if the engine that copies has not been shown the barrier.
void check_shown(const uint64_t* barrier);

// Bytes of a bulk copy have landed; an arrival comes that waited for the running thread's copies.
void land_on_mbarrier(uint64_t* barrier, uint32_t bytes);
void arrive_after_landing(uint64_t* barrier);

// What a thread waits for there, in words.
std::string describe_mbarrier(const Wait& wait);

// For a block that begins, and one that has ended.
void forget_mbarriers();
void check_mbarriers_at_end();

}  // namespace cuda_on_cpu
