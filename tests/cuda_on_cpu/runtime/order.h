// In which order blocks, warps and lanes run: ADEPT_CUDA_ON_CPU_ORDER is fwd, rev or the seed of a shuffle.
//
// A kernel may depend on none of it, so its result has to be the same bits in each.
#pragma once

#include <vector>

namespace cuda_on_cpu {

// Reads the environment, for a launch of that many blocks of that many warps.
void set_order(unsigned blocks, unsigned warps);

const std::vector<unsigned>& block_order();
const std::vector<unsigned>& warp_order();
const std::vector<unsigned>& lane_order();

// One of several things that may happen next: the first, the last, or any.
unsigned pick(unsigned count);

// Whether something happens already that may happen later: never, if the order is not shuffled.
bool perhaps();

}  // namespace cuda_on_cpu
