// What threads hand on what they know through, for the build that looks for races: mbarriers, and counters of blocks.
#pragma once

namespace cuda_on_cpu::races {

// For a launch that begins.
void forget_counters();

// For a block that begins.
void forget_mbarrier_clocks();

}  // namespace cuda_on_cpu::races
