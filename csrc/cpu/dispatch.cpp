// Chooses the instruction set: the best one that was compiled and that this machine has, unless another is requested.
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

namespace adept {

namespace portable {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512_vnni {
extern const Kernels table;
}

namespace {

std::vector<const Kernels*> find_runnable() {
  std::vector<const Kernels*> found;
#if defined(ADEPT_HAS_AVX512) || defined(ADEPT_HAS_AVX512_VNNI)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("fma");
#endif
#if defined(ADEPT_HAS_AVX512_VNNI)
  if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&avx512_vnni::table);
#endif
#if defined(ADEPT_HAS_AVX512)
  if (avx512) found.push_back(&avx512::table);
#endif
#if defined(ADEPT_HAS_AVX2)
  // Every processor with AVX2 and FMA has F16C.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::table);
#endif
  found.push_back(&portable::table);
  return found;
}

const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> found = find_runnable();
  return found;
}

const Kernels*& in_use() {
  static const Kernels* chosen = runnable().front();
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *in_use(); }

const char* runnable_instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* table : runnable()) joined += (joined.empty() ? "" : ",") + std::string(table->name);
    return joined;
  }();
  return names.c_str();
}

bool use_instruction_set(const char* name) {
  for (const Kernels* table : runnable())
    if (std::strcmp(table->name, name) == 0) {
      in_use() = table;
      return true;
    }
  return false;
}

}  // namespace adept
