#include "order.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>

namespace cuda_on_cpu {
namespace {

std::vector<unsigned> blocks_in_order;
std::vector<unsigned> warps_in_order;
std::vector<unsigned> lanes_in_order;

std::string wanted;
std::mt19937 generator;

bool is_shuffled() { return wanted != "fwd" && wanted != "rev"; }

// Not std::shuffle, whose result the standard leaves open.
void arrange(std::vector<unsigned>& order, unsigned count) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0u);
  if (wanted == "rev") std::reverse(order.begin(), order.end());
  if (!is_shuffled()) return;
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[generator() % i]);
}

}  // namespace

void set_order(unsigned blocks, unsigned warps) {
  const char* given = std::getenv("ADEPT_CUDA_ON_CPU_ORDER");
  wanted = given != nullptr ? given : "fwd";
  generator.seed(static_cast<unsigned>(std::strtoul(wanted.c_str(), nullptr, 10)));
  arrange(blocks_in_order, blocks);
  arrange(warps_in_order, warps);
  arrange(lanes_in_order, 32);
}

const std::vector<unsigned>& block_order() { return blocks_in_order; }
const std::vector<unsigned>& warp_order() { return warps_in_order; }
const std::vector<unsigned>& lane_order() { return lanes_in_order; }

unsigned pick(unsigned count) {
  if (is_shuffled()) return static_cast<unsigned>(generator() % count);
  return wanted == "rev" ? count - 1 : 0;
}

bool perhaps() { return is_shuffled() && generator() % 4 == 0; }

}  // namespace cuda_on_cpu
