// A launch: what it checks, and how the arguments come to the threads.
#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <utility>

#include "machine.h"

namespace cuda_on_cpu {

// A kernel and its arguments, and how they are kept for a graph. Plain pointers: what a kernel's file holds beyond
// them, the build that looks for races would check.
struct Call {
  void (*body)(void* context);
  void* context;
  void* (*copy)(const void* context);
  void (*destroy)(void* context);
};

// Checks as the driver would, then runs every block, or keeps that for a graph; the error is that of the launch.
cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const Call& call);

// cudaLaunchKernelEx. Each thread gets its own copy of the arguments, as on a GPU.
template <class... Parameters, class... Arguments>
inline cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                 Arguments&&... arguments) {
  using Context = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  Context context(kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
  const Call call{[](void* at) {
                    auto& [function, parameters] = *static_cast<Context*>(at);
                    std::apply(function, parameters);
                  },
                  &context, [](const void* at) -> void* { return new Context(*static_cast<const Context*>(at)); },
                  [](void* at) { delete static_cast<Context*>(at); }};
  return run_grid(*config, reinterpret_cast<const void*>(kernel), call);
}

}  // namespace cuda_on_cpu

// The toolkit's own, a template too, hands the arguments on without their types.
#define cudaLaunchKernelEx ::cuda_on_cpu::launch_kernel
