// Loads and stores that have a name, fences, and shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "machine.h"
#include "races.h"

namespace cuda_on_cpu {

inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("an access of " + std::to_string(bytes) + " bytes at an address that is not aligned to them");
  }
}

// Whether an address is in the block's shared memory, static or dynamic.
bool is_shared(const void* address);
bool is_dynamic_shared(const void* address);

// Fills all shared memory with what is NaN in every float format, so that what nobody has written shows.
void poison_shared();

// What static shared memory holds, for the time in which other blocks use it.
std::vector<char> copy_static_shared();
void restore_static_shared(const std::vector<char>& held);

template <class T>
inline T load(const T* address) {
  check_aligned(address, sizeof(T));
  return *address;
}

template <class T>
inline void store(T* address, T value) {
  check_aligned(address, sizeof(T));
  *address = value;
}

}  // namespace cuda_on_cpu

template <class T>
inline T __ldg(const T* address) { return ::cuda_on_cpu::load(address); }
template <class T>
inline T __ldca(const T* address) { return ::cuda_on_cpu::load(address); }
template <class T>
inline T __ldcg(const T* address) { return ::cuda_on_cpu::load(address); }
template <class T>
inline T __ldcs(const T* address) { return ::cuda_on_cpu::load(address); }
template <class T>
inline T __ldlu(const T* address) { return ::cuda_on_cpu::load(address); }
template <class T>
inline T __ldcv(const T* address) { return ::cuda_on_cpu::load(address); }
template <class T>
inline void __stwb(T* address, T value) { ::cuda_on_cpu::store(address, value); }
template <class T>
inline void __stcg(T* address, T value) { ::cuda_on_cpu::store(address, value); }
template <class T>
inline void __stcs(T* address, T value) { ::cuda_on_cpu::store(address, value); }
template <class T>
inline void __stwt(T* address, T value) { ::cuda_on_cpu::store(address, value); }

inline void __threadfence() { ::cuda_on_cpu::races::passed_fence(); }
inline void __threadfence_system() { ::cuda_on_cpu::races::passed_fence(); }
inline void __threadfence_block() {}
