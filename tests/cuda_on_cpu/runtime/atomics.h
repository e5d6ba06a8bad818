// Atomic operations. One thread runs at a time, so plain code is atomic; the races build is told of each.
#pragma once

#include <type_traits>

#include "memory.h"

namespace cuda_on_cpu {

template <class T>
struct AsIs {
  using type = T;
};
template <class T>
using as_is = typename AsIs<T>::type;  // a parameter that T is not deduced from

template <class T, class... Allowed>
constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

using Wide = unsigned long long;
template <class T>
constexpr bool is_counted = is_one_of<T, int, unsigned, Wide>;

// Not told apart into a read and a write, which would look like a race.
template <class T, class Change>
__attribute__((no_sanitize("thread"), noinline)) T change(T* address, Change change_value) {
  check_aligned(address, sizeof(T));
  races::changed_atomically(address, sizeof(T));
  const T before = *address;
  *address = change_value(before);
  return before;
}

}  // namespace cuda_on_cpu

template <class T>
inline T atomicAdd(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T> || ::cuda_on_cpu::is_one_of<T, float, double>);
  return ::cuda_on_cpu::change(address, [=](T before) -> T { return before + value; });
}
template <class T>
inline T atomicSub(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_one_of<T, int, unsigned>);
  return ::cuda_on_cpu::change(address, [=](T before) -> T { return before - value; });
}
template <class T>
inline T atomicMax(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T> || std::is_same_v<T, long long>);
  return ::cuda_on_cpu::change(address, [=](T before) { return before < value ? value : before; });
}
template <class T>
inline T atomicMin(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T> || std::is_same_v<T, long long>);
  return ::cuda_on_cpu::change(address, [=](T before) { return value < before ? value : before; });
}
template <class T>
inline T atomicAnd(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T>);
  return ::cuda_on_cpu::change(address, [=](T before) -> T { return before & value; });
}
template <class T>
inline T atomicOr(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T>);
  return ::cuda_on_cpu::change(address, [=](T before) -> T { return before | value; });
}
template <class T>
inline T atomicXor(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T>);
  return ::cuda_on_cpu::change(address, [=](T before) -> T { return before ^ value; });
}
template <class T>
inline T atomicExch(T* address, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T> || std::is_same_v<T, float>);
  return ::cuda_on_cpu::change(address, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* address, ::cuda_on_cpu::as_is<T> expected, ::cuda_on_cpu::as_is<T> value) {
  static_assert(::cuda_on_cpu::is_counted<T> || std::is_same_v<T, unsigned short>);
  return ::cuda_on_cpu::change(address, [=](T before) { return before == expected ? value : before; });
}
inline unsigned atomicInc(unsigned* address, unsigned most) {
  return ::cuda_on_cpu::change(address, [=](unsigned before) { return before >= most ? 0 : before + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned most) {
  return ::cuda_on_cpu::change(address,
                               [=](unsigned before) { return before == 0 || before > most ? most : before - 1; });
}
