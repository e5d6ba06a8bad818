// Small kernels that are right, and the same with one mistake planted: what the emulator has to find.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace faults {

// Runs a kernel, with its mistake or without; gives whether what came out is right.
using Run = bool (*)();

struct Fault {
  Run clean;
  Run faulty;  // null for what is only to be right
};

std::map<std::string, Fault>& all();

struct Registered {
  Registered(const char* name, Run clean, Run faulty = nullptr) { all()[name] = {clean, faulty}; }
};

// What a GPU's memory would hold: `count` values of T, exactly, so that AddressSanitizer sees an access past them.
template <class T>
class Global {
 public:
  explicit Global(size_t count) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, count * sizeof(T)) != 0) abort();
    std::memset(memory, 0, count * sizeof(T));
    values_ = static_cast<T*>(memory);
  }
  // `step`, twice that, and so on.
  Global(size_t count, T step) : Global(count) {
    for (size_t i = 0; i < count; ++i) values_[i] = step * static_cast<T>(i + 1);
  }
  Global(const Global&) = delete;
  Global& operator=(const Global&) = delete;
  ~Global() { free(values_); }

  T* data() { return values_; }
  T operator[](size_t i) const { return values_[i]; }

  T sum() const {
    T total = 0;
    for (size_t i = 0; i < count_; ++i) total += values_[i];
    return total;
  }

  T& operator[](size_t i) { return values_[i]; }

  bool is_filled_with(T value) const {
    for (size_t i = 0; i < count_; ++i)
      if (values_[i] != value) return false;
    return true;
  }

 private:
  size_t count_;
  T* values_;
};

// While it lives, the device is another one: ADEPT_CUDA_ON_CPU_...
class Device {
 public:
  Device(const char* setting, const char* value) : setting_(setting) { setenv(setting, value, 1); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { unsetenv(setting_); }

 private:
  const char* setting_;
};

// Queues a kernel; false where the launch is refused.
template <class... Parameters, class... Arguments>
bool ran(const adept::cuda::Shape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  return adept::cuda::launch(nullptr, shape, kernel, arguments...) == cudaSuccess;
}

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / 32; }

__device__ inline int warp_sum(int value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

}  // namespace faults
