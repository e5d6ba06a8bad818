#include "device.h"

#include <algorithm>
#include <cmath>

namespace adept::bench {
namespace {

constexpr int kWarmUps = 2;  // replays

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "making an event"); }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  void record(const Stream& stream) { check(cudaEventRecord(event_, stream.get()), "recording an event"); }

  double seconds_until(const Event& later) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, event_, later.event_), "reading an event");
    return 1e-3 * milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class Graph {
 public:
  Graph(const Stream& stream, const std::function<void()>& queue) {
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "beginning a capture");
    cudaGraph_t graph = nullptr;
    try {
      queue();
    } catch (const std::exception&) {
      if (cudaStreamEndCapture(stream.get(), &graph) == cudaSuccess) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream.get(), &graph), "ending a capture");
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "making a graph");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }

  void replay(const Stream& stream) const { check(cudaGraphLaunch(executable_, stream.get()), "replaying a graph"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

std::string version_of(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not tell of it again
  const std::string said = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(said);
  throw DeviceError(said);
}

DeviceMemory::DeviceMemory(size_t bytes) { check(cudaMalloc(&data_, bytes), "taking memory of the device"); }

PinnedWords::PinnedWords(int64_t count) {
  void* data = nullptr;
  check(cudaMallocHost(&data, static_cast<size_t>(count) * sizeof(int64_t)), "taking pinned memory");
  data_ = static_cast<int64_t*>(data);
  std::fill_n(data_, count, 0);
}

Stream::Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }

Figure figure_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {percentile(values, 0.5), percentile(values, 0.1), percentile(values, 0.9)};
}

Figure time_replays(const Stream& stream, const std::function<void()>& queue, int64_t calls, int64_t replays) {
  const Graph graph(stream, queue);
  for (int i = 0; i < kWarmUps; ++i) graph.replay(stream);
  std::vector<Event> events(static_cast<size_t>(replays) + 1);
  events[0].record(stream);
  for (size_t i = 1; i < events.size(); ++i) {
    graph.replay(stream);
    events[i].record(stream);
  }
  stream.wait();
  std::vector<double> seconds;
  for (size_t i = 1; i < events.size(); ++i) {
    seconds.push_back(events[i - 1].seconds_until(events[i]) / static_cast<double>(calls));
  }
  return figure_of(seconds);
}

DeviceFacts device_facts() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "there is no GPU");
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
  size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all), "asking for the memory");
  DeviceFacts facts;
  facts.name = properties.name;
  facts.capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  facts.multiprocessors = properties.multiProcessorCount;
  facts.l2_bytes = properties.l2CacheSize;
  facts.memory_bytes = static_cast<int64_t>(all);
  facts.driver = version_of(driver);
  facts.runtime = version_of(runtime);
  return facts;
}

int64_t free_bytes() {
  size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all), "asking for the memory");
  return static_cast<int64_t>(free);
}

}  // namespace adept::bench
