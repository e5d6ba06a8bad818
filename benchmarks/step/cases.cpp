#include "cases.h"

#include <algorithm>
#include <stdexcept>

namespace adept::bench {

const std::vector<std::string> kOperators = {
    "step", "layer",   "layernorm_qkv", "rotary_append", "decode_attention",   "linear_residual",
    "mlp",  "lm_head", "sample",        "embed",         "update_decode_state"};

namespace {

bool is_wanted(const Options& options, const std::string& name) {
  const auto& chosen = options.operators;
  return chosen.empty() || std::find(chosen.begin(), chosen.end(), name) != chosen.end();
}

// Of values and scales.
int64_t matrix_bytes(const std::string& format, int64_t rows, int64_t cols, int64_t outputs) {
  if (format == "float16") return 2 * rows * cols;
  if (format == "fp8") return rows * cols + 4 * outputs;
  return rows * ((cols + kGroupSize128 - 1) / kGroupSize128) * (kGroupSize128 / 2 + 2);
}

int64_t bytes_of_parts(const Case& whole, const Shapes& shapes, const std::string& format,
                       std::initializer_list<const char*> names) {
  int64_t sum = 0;
  Case part = whole;
  part.format = format;
  for (const char* name : names) {
    part.name = name;
    sum += bytes_moved(part, shapes);
  }
  return sum;
}

int64_t step_bytes(const Case& step, const Shapes& shapes) {
  return shapes.layers * bytes_of_parts(step, shapes, step.format, {"layer"}) +
         bytes_of_parts(step, shapes, head_format(step.format), {"lm_head"}) +
         bytes_of_parts(step, shapes, step.format, {"sample", "update_decode_state", "embed"});
}

}  // namespace

std::vector<Case> weight_cases(const Options& options, const std::string& format, const std::string& layout) {
  std::vector<Case> cases;
  const auto add = [&](Case item) {
    item.layout = layout;
    cases.push_back(item);
  };
  for (const int64_t positions : options.positions) {
    for (const int64_t tokens : options.tokens) {
      const bool both = positions != options.positions.front() && tokens != options.tokens.front();
      if (both && !options.cross) continue;
      for (const int64_t sparsity : options.sparsities) {
        if (is_wanted(options, "step")) add({"step", format, sparsity, tokens, positions, "greedy"});
        if (is_wanted(options, "layer")) add({"layer", format, sparsity, tokens, positions, ""});
      }
    }
  }
  if (layout == "one") return cases;
  for (const int64_t tokens : options.tokens) {
    for (const char* name : {"layernorm_qkv", "linear_residual", "lm_head"}) {
      const bool is_head = std::string(name) == "lm_head";
      const auto& formats = options.formats;
      // In 4 bits it is that of 8.
      const bool repeated = is_head && format == "int4" && std::count(formats.begin(), formats.end(), "fp8") > 0;
      if (!is_wanted(options, name) || repeated) continue;
      add({name, is_head ? head_format(format) : format, 0, tokens, 0, ""});
    }
    for (const int64_t sparsity : options.sparsities) {
      if (is_wanted(options, "mlp")) add({"mlp", format, sparsity, tokens, 0, ""});
    }
  }
  return cases;
}

std::vector<Case> other_cases(const Options& options) {
  std::vector<Case> cases;
  for (const int64_t positions : options.positions) {
    for (const int64_t tokens : options.tokens) {
      if (is_wanted(options, "decode_attention")) {
        cases.push_back({"decode_attention", "float16", 0, tokens, positions, ""});
      }
    }
  }
  for (const int64_t tokens : options.tokens) {
    if (is_wanted(options, "rotary_append")) cases.push_back({"rotary_append", "float16", 0, tokens, 0, ""});
    for (const char* sampling : {"greedy", "top-p", "top-k"}) {
      if (is_wanted(options, "sample")) cases.push_back({"sample", "float32", 0, tokens, 0, sampling});
    }
    if (is_wanted(options, "embed")) cases.push_back({"embed", "float16", 0, tokens, 0, ""});
    if (is_wanted(options, "update_decode_state")) cases.push_back({"update_decode_state", "int64", 0, tokens, 0, ""});
  }
  return cases;
}

int64_t active_neurons(const Shapes& shapes, int64_t sparsity) {
  return (shapes.intermediate * (100 - sparsity) + 50) / 100;
}

int64_t bytes_moved(const Case& item, const Shapes& shapes) {
  const int64_t hidden = shapes.hidden, tokens = item.tokens, x = 4 * tokens * hidden;
  const std::string& name = item.name;
  const auto matrix = [&](int64_t rows, int64_t outputs) { return matrix_bytes(item.format, rows, hidden, outputs); };
  if (name == "step") return step_bytes(item, shapes);
  if (name == "layer") {
    return bytes_of_parts(item, shapes, item.format,
                          {"layernorm_qkv", "rotary_append", "decode_attention", "linear_residual", "mlp"});
  }
  if (name == "layernorm_qkv") return matrix(3 * hidden, 3 * hidden) + 4 * 5 * hidden + 4 * x;
  if (name == "linear_residual") return matrix(hidden, hidden) + 4 * hidden + 3 * x;
  if (name == "lm_head") return matrix(shapes.vocab, shapes.vocab) + 4 * 2 * hidden + x + 4 * tokens * shapes.vocab;
  if (name == "mlp") {
    const int64_t intermediate = shapes.intermediate;
    const int64_t up = matrix(intermediate, intermediate) + 4 * (2 * hidden + intermediate);
    return up + matrix(active_neurons(shapes, item.sparsity), hidden) + 4 * hidden + 2 * x;
  }
  // q, k and v come in and q goes out as floats, k and v in 16 bits; norms; cosines and sines.
  if (name == "rotary_append") {
    return 4 * x + 2 * tokens * 2 * hidden + 4 * (4 * shapes.head_dim() + tokens * shapes.rotary());
  }
  if (name == "decode_attention") return cache_bytes(shapes, tokens, item.positions) + 2 * x;
  if (name == "sample") return 4 * tokens * shapes.vocab;
  if (name == "embed") return 8 * tokens + 2 * tokens * hidden + x;
  // What is read of a row, one of its ends, and what is written.
  if (name == "update_decode_state") return tokens * (5 * 8 + 1 + 4 * 8);
  throw std::logic_error("no operator is called " + name);
}

int64_t cache_bytes(const Shapes& shapes, int64_t tokens, int64_t positions) {
  return 2 * 2 * tokens * positions * shapes.hidden;  // keys and values in 16 bits
}

}  // namespace adept::bench
