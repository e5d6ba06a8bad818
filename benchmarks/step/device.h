// The device, by the CUDA runtime alone: memory that frees itself, a stream, and graphs that are replayed and timed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace adept::bench {

// After most of these the device answers nothing more to this process.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// This one leaves it usable.
struct OutOfMemory : DeviceError {
  using DeviceError::DeviceError;
};

// Throws DeviceError or OutOfMemory.
void check(cudaError_t error, const char* what);

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceMemory() { cudaFree(data_); }

  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

// `count` values of the device.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : memory_(static_cast<size_t>(count) * sizeof(T)), count_(count) {}
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size())) { upload(values); }

  T* get() const { return static_cast<T*>(memory_.get()); }
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }

  void upload(const std::vector<T>& values) {
    check(cudaMemcpy(get(), values.data(), bytes(), cudaMemcpyHostToDevice), "copying to the device");
  }

  std::vector<T> download() const {
    std::vector<T> values(static_cast<size_t>(count_));
    check(cudaMemcpy(values.data(), get(), bytes(), cudaMemcpyDeviceToHost), "copying from the device");
    return values;
  }

  // Gives the memory away.
  DeviceMemory release() { return std::move(memory_); }

  // All bytes 255: NaN as floats, -1 as ids. What a kernel has not written shows.
  void poison() { check(cudaMemset(get(), 0xff, bytes()), "filling memory"); }

 private:
  DeviceMemory memory_;
  int64_t count_;
};

// Memory of the host that the device can write to.
class PinnedWords {
 public:
  explicit PinnedWords(int64_t count);
  PinnedWords(const PinnedWords&) = delete;
  PinnedWords& operator=(const PinnedWords&) = delete;
  ~PinnedWords() { cudaFreeHost(data_); }

  int64_t* get() const { return data_; }

 private:
  int64_t* data_ = nullptr;
};

class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Seconds: the median, and the tenth and ninetieth percentile.
struct Figure {
  double median = 0;
  double p10 = 0;
  double p90 = 0;
};

// As numpy's percentile has it, between the two nearest.
Figure figure_of(std::vector<double> values);

// Seconds of one call. `queue` queues `calls` of them; that is captured into a graph, which is replayed without the
// device ever waiting for the host.
Figure time_replays(const Stream& stream, const std::function<void()>& queue, int64_t calls, int64_t replays);

struct DeviceFacts {
  std::string name;
  std::string capability;
  int multiprocessors = 0;
  int64_t l2_bytes = 0;
  int64_t memory_bytes = 0;
  std::string driver;   // the CUDA version that the driver serves
  std::string runtime;  // the one that this program is linked to
};

// Throws DeviceError where there is no device.
DeviceFacts device_facts();

int64_t free_bytes();

}  // namespace adept::bench
