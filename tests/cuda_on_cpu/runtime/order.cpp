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

// Not std::shuffle, whose result the standard leaves open.
void arrange(std::vector<unsigned>& order, unsigned count, const std::string& wanted, std::mt19937& generator) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0u);
  if (wanted == "rev") std::reverse(order.begin(), order.end());
  if (wanted == "fwd" || wanted == "rev") return;
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[generator() % i]);
}

}  // namespace

void set_order(unsigned blocks, unsigned warps) {
  const char* given = std::getenv("ADEPT_CUDA_ON_CPU_ORDER");
  const std::string wanted = given != nullptr ? given : "fwd";
  std::mt19937 generator(static_cast<unsigned>(std::strtoul(wanted.c_str(), nullptr, 10)));
  arrange(blocks_in_order, blocks, wanted, generator);
  arrange(warps_in_order, warps, wanted, generator);
  arrange(lanes_in_order, 32, wanted, generator);
}

const std::vector<unsigned>& block_order() { return blocks_in_order; }
const std::vector<unsigned>& warp_order() { return warps_in_order; }
const std::vector<unsigned>& lane_order() { return lanes_in_order; }

}  // namespace cuda_on_cpu
