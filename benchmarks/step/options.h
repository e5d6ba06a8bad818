// What the program is asked for: the model's shapes, the settings that are measured, and where results go.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operands.h"

namespace adept::bench {

// Of a model, Persimmon-8B unless told otherwise.
struct Shapes {
  int64_t layers = 36;
  int64_t hidden = 4096;
  int64_t heads = 64;
  int64_t intermediate = 16384;
  int64_t vocab = 262144;

  int64_t head_dim() const { return hidden / heads; }
  int64_t rotary() const { return head_dim() / 2; }  // dimensions that turn
};

struct Options {
  Shapes shapes;
  std::vector<std::string> formats = {"float16", "int4", "fp8"};
  std::vector<std::string> layouts = {"row_major"};   // and kernels; of kLayouts
  std::vector<int64_t> sparsities = {0, 50, 90, 95};  // percent of the MLP's neurons that are inactive
  std::vector<int64_t> tokens = {1, 2, 4, 8, 16};
  std::vector<int64_t> positions = {128, 2048, 16384};
  std::vector<std::string> operators;  // all of them where none is named
  bool cross = false;                  // the step over every combination
  int64_t replays = 20;
  int64_t bandwidth_bytes = int64_t{1} << 30;  // read to measure the bandwidth
  std::string json;
  std::string dump;
  std::string commit;
  bool help = false;
};

extern const char* const kHelp;

// Of matrices; "one" is tiles too, with one kernel for all layers of a step.
extern const std::vector<std::string> kLayouts;

// Throws std::invalid_argument, whose message is one sentence.
Options parse(int count, const char* const* arguments);

// Of one of Options::formats.
Format format_of(const std::string& name);

// Of the lm_head: in 4 bits the logits would lose too much, so it has 8 there, as the package has it.
std::string head_format(const std::string& format);

}  // namespace adept::bench
