#include "options.h"

#include <algorithm>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>

#include "cases.h"
#include "cuda/kernels.h"

namespace adept::bench {

const char* const kHelp = R"(Times a decode step, and each of its operators alone, on the first GPU.

  --format LIST        of float16, fp8, int4                 [float16,int4,fp8]
  --layout LIST        of row_major; tiles, where decode_layers computes a step; one, where it is one kernel
                                                             [row_major]
  --sparsity LIST      percent of inactive MLP neurons       [0,50,90,95]
  --tokens LIST        sequences that are decoded at once    [1,2,4,8,16]
  --positions LIST     positions of each in the cache        [128,2048,16384]
  --operator LIST      layernorm_qkv, rotary_append, decode_attention, linear_residual, mlp, lm_head,
                       sample, embed, update_decode_state, layer, step   [all]
  --cross              the step over all combinations; without it, tokens and positions do not leave the
                       first of their list both at once. Every operator takes all that it depends on.
  --quick              --layout row_major,tiles,one --sparsity 0,90 --tokens 1,16 --positions 128 --replays 10
  --replays NUMBER     of a graph, for each figure           [20]
  --layers, --hidden, --heads, --intermediate, --vocab NUMBER  [36, 4096, 64, 16384, 262144]
  --tiny               two layers of a model that a CPU can emulate
  --json FILE          the results, written anew after each
  --dump FILE          the logits of the first step's first run, as float32 [tokens, vocab]
  --commit NAME        is put into the results
)";

const std::vector<std::string> kLayouts = {"row_major", "tiles", "one"};

namespace {

const std::vector<std::string> kFormats = {"float16", "fp8", "int4"};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += (all.empty() ? "" : ", ") + part;
  return all;
}

[[noreturn]] void refuse(const std::string& option, const std::string& given, const std::string& expected) {
  throw std::invalid_argument(option + " is " + (given.empty() ? "empty" : given) + "; expected " + expected);
}

int64_t whole_number(const std::string& option, const std::string& text, int64_t min, int64_t max) {
  const bool digits = !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos;
  const int64_t value = digits ? std::stoll(text) : -1;
  if (value < min || value > max) {
    refuse(option, text, "a whole number from " + std::to_string(min) + " to " + std::to_string(max));
  }
  return value;
}

std::vector<int64_t> whole_numbers(const std::string& option, const std::string& list, int64_t min, int64_t max) {
  std::vector<int64_t> values;
  for (const std::string& text : split(list)) {
    const int64_t value = whole_number(option, text, min, max);
    if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
  }
  if (values.empty()) refuse(option, list, "one number or several with commas between");
  return values;
}

std::vector<std::string> names(const std::string& option, const std::string& list,
                               const std::vector<std::string>& known) {
  std::vector<std::string> chosen;
  for (const std::string& name : split(list)) {
    if (std::find(known.begin(), known.end(), name) == known.end()) refuse(option, name, "some of " + joined(known));
    if (std::find(chosen.begin(), chosen.end(), name) == chosen.end()) chosen.push_back(name);
  }
  if (chosen.empty()) refuse(option, list, "some of " + joined(known));
  return chosen;
}

void choose_quick(Options& options) {
  options.layouts = kLayouts;
  options.sparsities = {0, 90};
  options.tokens = {1, 16};
  options.positions = {128};
  options.replays = 10;
}

void choose_tiny(Options& options) {
  options.shapes = {2, 128, 2, 384, 520};
  options.sparsities = {0, 90};
  options.tokens = {1, 3};
  options.positions = {5, 300};
  options.replays = 2;
  options.bandwidth_bytes = 1 << 16;
}

void check_shapes(const Shapes& shapes) {
  if (shapes.hidden % kGroupSize128 != 0) {
    refuse("--hidden", std::to_string(shapes.hidden), "a multiple of " + std::to_string(kGroupSize128));
  }
  const bool divides = shapes.hidden % shapes.heads == 0;
  if (!divides || shapes.head_dim() % 8 != 0 || shapes.head_dim() > 256) {
    refuse("--heads", std::to_string(shapes.heads), "heads of 8, 16, ... 256 dimensions");
  }
}

}  // namespace

Options parse(int count, const char* const* arguments) {
  Options options;
  constexpr int64_t kMax = 1 << 20;
  using Take = std::function<void(const std::string& name, const std::string& value)>;
  const auto number = [](int64_t& to, int64_t min, int64_t max) -> Take {
    return [&to, min, max](const std::string& name, const std::string& value) {
      to = whole_number(name, value, min, max);
    };
  };
  const auto numbers = [](std::vector<int64_t>& to, int64_t min, int64_t max) -> Take {
    return [&to, min, max](const std::string& name, const std::string& value) {
      to = whole_numbers(name, value, min, max);
    };
  };
  const auto choice = [](std::vector<std::string>& to, const std::vector<std::string>& known) -> Take {
    return [&to, &known](const std::string& name, const std::string& value) { to = names(name, value, known); };
  };
  const auto text = [](std::string& to) -> Take {
    return [&to](const std::string&, const std::string& value) { to = value; };
  };
  Shapes& shapes = options.shapes;
  const std::map<std::string, Take> with_value = {
      {"--format", choice(options.formats, kFormats)},
      {"--layout", choice(options.layouts, kLayouts)},
      {"--operator", choice(options.operators, kOperators)},
      {"--sparsity", numbers(options.sparsities, 0, 100)},
      {"--tokens", numbers(options.tokens, 1, cuda::kMaxTokens)},
      {"--positions", numbers(options.positions, 1, kMax)},
      {"--replays", number(options.replays, 1, 10000)},
      {"--layers", number(shapes.layers, 1, 1000)},
      {"--hidden", number(shapes.hidden, kGroupSize128, kMax)},
      {"--heads", number(shapes.heads, 1, kMax)},
      {"--intermediate", number(shapes.intermediate, 8, kMax)},
      {"--vocab", number(shapes.vocab, 1, kMax)},
      {"--json", text(options.json)},
      {"--dump", text(options.dump)},
      {"--commit", text(options.commit)},
  };
  const std::map<std::string, std::function<void()>> alone = {
      {"--quick", [&] { choose_quick(options); }},
      {"--tiny", [&] { choose_tiny(options); }},
      {"--cross", [&] { options.cross = true; }},
      {"--help", [&] { options.help = true; }},
  };
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (const auto found = alone.find(name); found != alone.end()) {
      found->second();
    } else if (const auto taken = with_value.find(name); taken == with_value.end()) {
      throw std::invalid_argument(name + " is no option; --help lists them");
    } else if (i + 1 == count) {
      throw std::invalid_argument(name + " has no value");
    } else {
      taken->second(name, arguments[++i]);
    }
  }
  check_shapes(shapes);
  return options;
}

Format format_of(const std::string& name) {
  if (name == "float16") return Format::kFloat16;
  return name == "fp8" ? Format::kFloat8 : Format::kInt4G128;
}

std::string head_format(const std::string& format) { return format == "int4" ? "fp8" : format; }

}  // namespace adept::bench
