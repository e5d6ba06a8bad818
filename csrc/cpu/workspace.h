// Buffers that live during one operator. A thread keeps its blocks, so that a decode step allocates no memory.
#pragma once

#include <cstdlib>
#include <limits>
#include <new>
#include <vector>

#include "simd.h"

namespace adept::ADEPT_ISA {

class WorkspacePool {
 public:
  struct Block {
    void* data;
    size_t bytes;
  };

  static WorkspacePool& of_this_thread() {
    thread_local WorkspacePool pool;
    return pool;
  }

  // The smallest block that is large enough, or a new one.
  Block take(size_t bytes) {
    size_t best = free_.size();
    for (size_t i = 0; i < free_.size(); ++i)
      if (free_[i].bytes >= bytes && (best == free_.size() || free_[i].bytes < free_[best].bytes)) best = i;
    if (best != free_.size()) {
      const Block block = free_[best];
      free_.erase(free_.begin() + std::ptrdiff_t(best));
      return block;
    }
    const size_t rounded = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    void* data = std::aligned_alloc(kCacheLine, rounded);
    if (data == nullptr) throw std::bad_alloc();
    return {data, rounded};
  }

  void give_back(Block block) {
    if (free_.size() == kKept) {
      std::free(free_.front().data);
      free_.erase(free_.begin());
    }
    free_.push_back(block);
  }

  ~WorkspacePool() {
    for (const Block& block : free_) std::free(block.data);
  }

 private:
  static constexpr size_t kKept = 16;
  std::vector<Block> free_;
};

// `count` elements of T, aligned to a cache line, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : block_(WorkspacePool::of_this_thread().take(bytes_of(count))) {}
  ~Buffer() { WorkspacePool::of_this_thread().give_back(block_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return static_cast<T*>(block_.data); }
  const T* data() const { return static_cast<const T*>(block_.data); }
  operator T*() { return data(); }

 private:
  // An overflow must not turn a huge size into a small one.
  static size_t bytes_of(int64_t count) {
    if (count < 0 || count > std::numeric_limits<int64_t>::max() / int64_t(2 * sizeof(T))) throw std::bad_alloc();
    return size_t(count ? count : 1) * sizeof(T);
  }

  WorkspacePool::Block block_;
};

}  // namespace adept::ADEPT_ISA
