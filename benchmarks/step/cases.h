// The cases: an operator in one setting, and the bytes that it has to move.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "options.h"

namespace adept::bench {

extern const std::vector<std::string> kOperators;

// What an operator does not depend on is left at 0, or empty.
struct Case {
  std::string name;      // of the operator, "layer" for those of a layer, or "step" for all of a decode step
  std::string format;    // of the weights; of the cache, the logits or the ids where there are none
  int64_t sparsity = 0;  // percent of the MLP's neurons that are inactive
  int64_t tokens = 1;
  int64_t positions = 0;  // of each sequence, its new token's among them; how many, an append does not care
  std::string sampling;   // greedy, top-p or top-k
  std::string layout = "row_major";

  bool in_tiles() const { return layout != "row_major"; }
  bool reads_rows_of_active_neurons() const { return name == "mlp" || name == "layer" || name == "step"; }
  bool needs_cache() const { return positions > 0 || name == "rotary_append"; }
};

// The cases in which weights of a format in a layout play a part, those of a step before the operators' own.
std::vector<Case> weight_cases(const Options& options, const std::string& format, const std::string& layout);

// All others.
std::vector<Case> other_cases(const Options& options);

// Exactly as many neurons as that percentage leaves, to the nearest.
int64_t active_neurons(const Shapes& shapes, int64_t sparsity);

// Of one call, or one step: each input read once, each output written once, no inactive neuron's row read.
int64_t bytes_moved(const Case& item, const Shapes& shapes);

int64_t cache_bytes(const Shapes& shapes, int64_t tokens, int64_t positions);  // of one layer

}  // namespace adept::bench
