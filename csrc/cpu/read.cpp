// read: goes over memory as the kernels do and only adds the words up: the bandwidth that kernels are compared with.
//
// Layout: threads take pieces of 128 kB or more. Lower bound: the bytes over the memory's bandwidth. Limit: memory
// bandwidth.
#include <atomic>

#include "products.h"
#include "threads.h"

namespace adept::ADEPT_ISA {

int32_t read(const Threads& threads, const void* from, int64_t bytes) {
  constexpr int64_t kBytesPerTask = 128 * 1024;
  constexpr int kSums = 4;
  std::atomic<int32_t> checksum{0};
  const int64_t whole = bytes / (kSums * kCacheLine) * (kSums * kCacheLine);
  parallel_pieces(threads, whole, kBytesPerTask, [&](int64_t begin, int64_t end) {
    I32x16 sums[kSums];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sums[i] = zero_i32();
    for (int64_t at = begin; at < end; at += kSums * kCacheLine)
#pragma GCC unroll 16
      for (int i = 0; i < kSums; ++i) {
        const auto* line = reinterpret_cast<const int32_t*>(static_cast<const char*>(from) + at + i * kCacheLine);
        prefetch_stream(line);
        sums[i] = add(sums[i], load(line));
      }
    int32_t lanes[kLanes];
    store(lanes, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    uint32_t total = 0;
    for (int32_t lane : lanes) total += uint32_t(lane);
    checksum.fetch_add(int32_t(total), std::memory_order_relaxed);
  });
  uint32_t rest = 0;
  for (int64_t at = whole; at + 4 <= bytes; at += 4) {
    uint32_t word;
    std::memcpy(&word, static_cast<const char*>(from) + at, sizeof word);
    rest += word;
  }
  return int32_t(uint32_t(checksum.load()) + rest);
}

}  // namespace adept::ADEPT_ISA
