// What lanes of a warp do together, by the names that CUDA has for it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.h"

namespace cuda_on_cpu {

constexpr size_t kLargestShuffled = 16;

// `value` of `size` bytes becomes that of the lane `source`.
void shuffle(Meeting kind, unsigned mask, void* value, size_t size, int source);
unsigned ballot(unsigned mask, bool predicate);
unsigned match_any(unsigned mask, uint64_t value);

enum class Reduction { kAdd, kMin, kMax, kAnd, kOr, kXor };
unsigned reduce(unsigned mask, unsigned value, Reduction reduction, bool is_signed);

template <class T>
inline T shuffled(Meeting kind, unsigned mask, T value, int source) {
  // Pairs of 16-bit floats are not trivially copyable by the letter, for their headers spell the copying out.
  static_assert(std::is_trivially_destructible_v<T> && sizeof(T) <= kLargestShuffled);
  shuffle(kind, mask, &value, sizeof(T), source);
  return value;
}

inline int first_of_part(int width) { return current->lane / width * width; }

inline bool in_same_part(int lane, int width) { return lane >= 0 && lane / width == current->lane / width; }

}  // namespace cuda_on_cpu

inline void __syncthreads() { ::cuda_on_cpu::meet_block(::cuda_on_cpu::Barrier::kSync); }
inline int __syncthreads_or(int predicate) { return ::cuda_on_cpu::meet_block(::cuda_on_cpu::Barrier::kOr, predicate); }
inline int __syncthreads_and(int predicate) {
  return ::cuda_on_cpu::meet_block(::cuda_on_cpu::Barrier::kAnd, predicate);
}
inline int __syncthreads_count(int predicate) {
  return ::cuda_on_cpu::meet_block(::cuda_on_cpu::Barrier::kCount, predicate);
}

inline void __syncwarp(unsigned mask = ::cuda_on_cpu::kEveryLane) {
  ::cuda_on_cpu::meet_warp(::cuda_on_cpu::Meeting::kSync, mask, nullptr, nullptr);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  using namespace ::cuda_on_cpu;
  return shuffled(Meeting::kShuffle, mask, value, first_of_part(width) + (source & (width - 1)));
}

// A lane whose source would be in another part of the warp keeps its own value.
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace ::cuda_on_cpu;
  const int source = current->lane - static_cast<int>(delta);
  return shuffled(Meeting::kShuffleUp, mask, value, in_same_part(source, width) ? source : current->lane);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace ::cuda_on_cpu;
  const int source = current->lane + static_cast<int>(delta);
  return shuffled(Meeting::kShuffleDown, mask, value, in_same_part(source, width) ? source : current->lane);
}

// Here an earlier part may be read from, a later one not.
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  using namespace ::cuda_on_cpu;
  const int source = current->lane ^ lanes;
  const bool is_later_part = source / width > current->lane / width;
  return shuffled(Meeting::kShuffleXor, mask, value, is_later_part ? current->lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return ::cuda_on_cpu::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline unsigned __activemask() = delete;  // what it gives depends on how the compiler has arranged the branches

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return ::cuda_on_cpu::match_any(mask, bits);
}

template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* all) {
  *all = __match_any_sync(mask, value) == mask;
  return *all ? mask : 0;
}

namespace cuda_on_cpu {

template <class T>
inline T reduced(unsigned mask, T value, Reduction reduction) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return static_cast<T>(reduce(mask, static_cast<unsigned>(value), reduction, std::is_signed_v<T>));
}

}  // namespace cuda_on_cpu

template <class T>
inline T __reduce_add_sync(unsigned mask, T value) {
  return ::cuda_on_cpu::reduced(mask, value, ::cuda_on_cpu::Reduction::kAdd);
}
template <class T>
inline T __reduce_min_sync(unsigned mask, T value) {
  return ::cuda_on_cpu::reduced(mask, value, ::cuda_on_cpu::Reduction::kMin);
}
template <class T>
inline T __reduce_max_sync(unsigned mask, T value) {
  return ::cuda_on_cpu::reduced(mask, value, ::cuda_on_cpu::Reduction::kMax);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return ::cuda_on_cpu::reduced(mask, value, ::cuda_on_cpu::Reduction::kAnd);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return ::cuda_on_cpu::reduced(mask, value, ::cuda_on_cpu::Reduction::kOr);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return ::cuda_on_cpu::reduced(mask, value, ::cuda_on_cpu::Reduction::kXor);
}
