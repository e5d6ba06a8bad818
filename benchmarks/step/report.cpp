#include "report.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <stdexcept>

#include "cuda/launch.cuh"

namespace adept::bench {
namespace {

template <class... Values>
std::string formatted(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

std::string quoted(const std::string& text) {
  std::string all = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') all += '\\';
    all += static_cast<unsigned char>(letter) < ' ' ? ' ' : letter;
  }
  return all + '"';
}

std::string number(double value) { return formatted("%.9g", value); }
std::string number(int64_t value) { return std::to_string(value); }

std::string figure(const Figure& figure) {
  return "{\"median\": " + number(figure.median) + ", \"p10\": " + number(figure.p10) +
         ", \"p90\": " + number(figure.p90) + "}";
}

// Fields of an object, in one line.
class Fields {
 public:
  Fields& add(const std::string& name, const std::string& json) {
    text_ += (text_.empty() ? "" : ", ") + quoted(name) + ": " + json;
    return *this;
  }
  std::string object() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

std::string size_or_dash(int64_t value) { return value > 0 ? std::to_string(value) : "-"; }

}  // namespace

Report::Report(const Options& options, const DeviceFacts& device, const Bandwidth& bandwidth)
    : options_(options), device_(device), bandwidth_(bandwidth) {
  std::printf("%s, capability %s, %d multiprocessors, CUDA %s (driver %s)%s\n", device.name.c_str(),
              device.capability.c_str(), device.multiprocessors, device.runtime.c_str(), device.driver.c_str(),
              cuda::overlaps_launches() ? ", launches overlap" : "");
  std::printf("read %.3f TB/s, copy %.3f TB/s (reads and writes); bounds are bytes at the read bandwidth\n\n",
              1e-12 * bandwidth.read.median, 1e-12 * bandwidth.copy.median);
  std::printf("%-17s %-8s %-9s %-8s %8s %6s %9s %10s %10s %10s %10s %6s\n", "", "format", "layout", "sampling",
              "inactive", "tokens", "positions", "us", "p10", "p90", "bound us", "share");
  write();
}

void Report::add(const Result& result) {
  results_.push_back(result);
  std::printf("%s\n", line_of(result).c_str());
  std::fflush(stdout);
  write();
}

bool Report::has_failures() const {
  return std::any_of(results_.begin(), results_.end(), [](const Result& result) { return !result.failed.empty(); });
}

double Report::bound_seconds(const Result& result) const {
  return static_cast<double>(result.bytes) / bandwidth_.read.median;
}

std::string Report::line_of(const Result& result) const {
  const Case& item = result.item;
  const std::string inactive = item.reads_rows_of_active_neurons() ? std::to_string(item.sparsity) + " %" : "-";
  std::string line =
      formatted("%-17s %-8s %-9s %-8s %8s %6s %9s ", item.name.c_str(), item.format.c_str(), item.layout.c_str(),
                item.sampling.empty() ? "-" : item.sampling.c_str(), inactive.c_str(),
                std::to_string(item.tokens).c_str(), size_or_dash(item.positions).c_str());
  if (!result.failed.empty()) return line + "failed: " + result.failed;
  if (!result.skipped.empty()) return line + "skipped: " + result.skipped;
  const Figure& seconds = result.seconds;
  line += formatted("%10.2f %10.2f %10.2f %10.2f %6.2f", 1e6 * seconds.median, 1e6 * seconds.p10, 1e6 * seconds.p90,
                    1e6 * bound_seconds(result), bound_seconds(result) / seconds.median);
  const bool take_turns = item.needs_cache() && result.distinct_caches < options_.shapes.layers;
  return take_turns ? line + "  " + std::to_string(result.distinct_caches) + " caches take turns" : line;
}

std::string Report::json_of(const Result& result) const {
  const Case& item = result.item;
  Fields fields;
  fields.add("operator", quoted(item.name))
      .add("format", quoted(item.format))
      .add("layout", quoted(item.layout))
      .add("sparsity_percent", number(item.sparsity))
      .add("tokens", number(item.tokens))
      .add("positions", number(item.positions))
      .add("sampling", quoted(item.sampling))
      .add("bytes", number(result.bytes));
  if (!result.failed.empty()) return fields.add("failed", quoted(result.failed)).object();
  if (!result.skipped.empty()) return fields.add("skipped", quoted(result.skipped)).object();
  return fields.add("calls_per_replay", number(result.calls))
      .add("distinct_caches", number(result.distinct_caches))
      .add("mean_magnitude", number(result.magnitude))
      .add("seconds", figure(result.seconds))
      .add("bound_seconds", number(bound_seconds(result)))
      .add("share", number(bound_seconds(result) / result.seconds.median))
      .object();
}

std::string Report::json() const {
  const Shapes& shapes = options_.shapes;
  Fields device, model;
  device.add("name", quoted(device_.name))
      .add("capability", quoted(device_.capability))
      .add("multiprocessors", number(int64_t{device_.multiprocessors}))
      .add("l2_bytes", number(device_.l2_bytes))
      .add("memory_bytes", number(device_.memory_bytes))
      .add("driver", quoted(device_.driver))
      .add("runtime", quoted(device_.runtime));
  model.add("layers", number(shapes.layers))
      .add("hidden", number(shapes.hidden))
      .add("heads", number(shapes.heads))
      .add("intermediate", number(shapes.intermediate))
      .add("vocab", number(shapes.vocab));
  std::string all = "{\n\"program\": \"step\",\n\"commit\": " + quoted(options_.commit) +
                    ",\n\"device\": " + device.object() + ",\n\"shapes\": " + model.object() +
                    ",\n\"launches_overlap\": " + (cuda::overlaps_launches() ? "true" : "false") +
                    ",\n\"replays\": " + number(options_.replays) +
                    ",\n\"read_bytes_per_second\": " + figure(bandwidth_.read) +
                    ",\n\"copy_bytes_per_second\": " + figure(bandwidth_.copy) + ",\n\"measured\": [";
  for (size_t i = 0; i < results_.size(); ++i) all += (i > 0 ? ",\n" : "\n") + json_of(results_[i]);
  return all + "\n]\n}\n";
}

// Beside its place first, so that there is always a whole one.
void Report::write() const {
  if (options_.json.empty()) return;
  const std::string partial = options_.json + ".partial";
  std::ofstream file(partial);
  file << json();
  file.close();
  if (!file || std::rename(partial.c_str(), options_.json.c_str()) != 0) {
    throw std::runtime_error("nothing can be written to " + options_.json);
  }
}

}  // namespace adept::bench
