#include "measure.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <optional>

#include "cuda/kernels.h"
#include "decode.h"
#include "fill.h"
#include "model.h"

namespace adept::bench {
namespace {

constexpr int64_t kBandwidthCalls = 4;  // in a graph

Figure rate(const Stream& stream, double bytes, int64_t replays, const std::function<void()>& call) {
  const auto queue = [&] {
    for (int64_t i = 0; i < kBandwidthCalls; ++i) call();
  };
  queue();
  stream.wait();
  const Figure seconds = time_replays(stream, queue, kBandwidthCalls, replays);
  return {bytes / seconds.median, bytes / seconds.p90, bytes / seconds.p10};
}

// Why an output is not one, or nothing.
std::string fault_of(const std::vector<float>& output, const Case& item) {
  if (std::any_of(output.begin(), output.end(), [](float value) { return !std::isfinite(value); })) {
    return "a result is not finite";
  }
  const bool are_ids = item.name == "sample" || item.name == "update_decode_state";
  if (are_ids && *std::min_element(output.begin(), output.end()) < 0) return "an id was not written";
  const auto is_zero = [](float value) { return value == 0; };
  if (!are_ids && std::all_of(output.begin(), output.end(), is_zero)) return "all results are 0";
  return "";
}

double magnitude_of(const std::vector<float>& output) {
  double sum = 0;
  for (const float value : output) sum += std::fabs(value);
  return sum / static_cast<double>(output.size());
}

void write_floats(const std::string& path, const std::vector<float>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  if (!file.flush()) throw std::runtime_error("nothing can be written to " + path);
}

// Holds what cases share, so that it is made only when it changes.
class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        tables_(options.shapes, *std::max_element(options.positions.begin(), options.positions.end())) {}

  // Throws OutOfMemory.
  void use_model(const std::string& format, bool in_tiles) {
    forget_model();
    model_ = std::make_unique<Model>(options_.shapes, format, in_tiles);
  }

  void forget_model() {
    caches_.reset();
    model_.reset();
  }

  Result run(const Case& item) {
    Result result;
    result.item = item;
    result.bytes = bytes_moved(item, options_.shapes);
    try {
      measure(item, result);
    } catch (const OutOfMemory& error) {
      result.skipped = error.what();
    }
    return result;
  }

 private:
  void measure(const Case& item, Result& result) {
    const int64_t positions = item.positions > 0 ? item.positions : options_.positions.front();
    if (item.needs_cache()) {
      use_caches(item.tokens, positions);
      result.distinct_caches = caches_->distinct();
    }
    if (item.reads_rows_of_active_neurons()) model_->set_sparsity(item.sparsity);
    State state(options_.shapes, item.tokens, positions, item.sampling);
    Decode decode(options_.shapes, model_.get(), tables_, caches_.get(), state, stream_.get());
    if (item.layout == "one") result.skipped = decode.refuses_one_kernel();
    if (!result.skipped.empty()) return;
    decode.poison(item);
    // What was filled, was on another stream.
    check(cudaDeviceSynchronize(), "filling memory");
    result.calls = decode.queue(item);
    stream_.wait();
    const std::vector<float> output = decode.output(item);
    result.magnitude = magnitude_of(output);
    result.failed = fault_of(output, item);
    if (result.failed.empty()) result.failed = fault_of_neurons(item, state.neuron_counts.download());
    if (!result.failed.empty()) return;
    if (item.name == "step" && !options_.dump.empty() && !has_dumped_) {
      write_floats(options_.dump, output);
      has_dumped_ = true;
    }
    result.seconds = time_replays(stream_, [&] { decode.queue(item); }, result.calls, options_.replays);
    result.failed = fault_of(decode.output(item), item);
  }

  void use_caches(int64_t tokens, int64_t positions) {
    if (caches_ && caches_->tokens() == tokens && caches_->positions() == positions) return;
    caches_.reset();  // before others are made
    caches_ = std::make_unique<Caches>(options_.shapes, tokens, positions);
  }

  // Whether the MLP has read other rows than those of active neurons.
  std::string fault_of_neurons(const Case& item, const std::vector<int64_t>& counts) const {
    if (!item.reads_rows_of_active_neurons()) return "";
    const Shapes& shapes = options_.shapes;
    const int64_t active = shapes.layers * active_neurons(shapes, item.sparsity);
    if (counts == std::vector<int64_t>{active, shapes.layers * shapes.intermediate}) return "";
    return std::to_string(counts[0]) + " of " + std::to_string(counts[1]) + " neurons were active; expected " +
           std::to_string(active);
  }

  const Options& options_;
  Stream stream_;
  Tables tables_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Caches> caches_;
  bool has_dumped_ = false;
};

// As `run`, but an error that the device does not recover from goes on after `take`.
void run_and_take(Bench& bench, const Case& item, const std::function<void(const Result&)>& take) {
  Result result;
  try {
    result = bench.run(item);
  } catch (const DeviceError& error) {
    result.item = item;
    result.failed = error.what();
    take(result);
    throw;
  }
  take(result);
}

}  // namespace

Bandwidth measure_bandwidth(const Options& options) {
  const Stream stream;
  const int64_t bytes = options.bandwidth_bytes;
  const Buffer<uint8_t> from(bytes), to(bytes);
  const Buffer<uint32_t> sink(1);
  fill_bytes(from, 1);
  check(cudaDeviceSynchronize(), "filling memory");
  const auto size = static_cast<double>(bytes);
  Bandwidth bandwidth;
  bandwidth.read = rate(stream, size, options.replays, [&] {
    check(cuda::read(from.get(), static_cast<size_t>(bytes), sink.get(), stream.get()), "read");
  });
  bandwidth.copy = rate(stream, 2 * size, options.replays, [&] {
    check(cuda::copy(from.get(), to.get(), static_cast<size_t>(bytes), stream.get()), "copy");
  });
  return bandwidth;
}

namespace {

void measure_weights(const Options& options, Bench& bench, const std::string& layout,
                     const std::function<void(const Result&)>& take) {
  for (const std::string& format : options.formats) {
    const std::vector<Case> cases = weight_cases(options, format, layout);
    if (cases.empty()) continue;
    std::optional<std::string> without_room;
    try {
      bench.use_model(format, layout != "row_major");
    } catch (const OutOfMemory& error) {
      without_room = error.what();
    }
    for (const Case& item : cases) {
      if (!without_room) {
        run_and_take(bench, item, take);
        continue;
      }
      Result result;
      result.item = item;
      result.skipped = *without_room;
      take(result);
    }
  }
}

}  // namespace

void measure_all(const Options& options, const std::function<void(const Result&)>& take) {
  Bench bench(options);
  const auto measure_layouts = [&](bool one_kernel) {
    for (const std::string& layout : options.layouts) {
      if ((layout == "one") == one_kernel) measure_weights(options, bench, layout, take);
    }
  };
  measure_layouts(false);
  bench.forget_model();
  for (const Case& item : other_cases(options)) run_and_take(bench, item, take);
  // Its blocks wait for each other: nothing is lost if they never end.
  measure_layouts(true);
}

}  // namespace adept::bench
