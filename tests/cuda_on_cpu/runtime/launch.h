// A launch: what it checks, and how the arguments come to the threads.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <tuple>
#include <utility>

#include "machine.h"

namespace cuda_on_cpu {

// Checks as the driver would, then runs every block, or keeps that for a graph; the error is that of the launch.
cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*),
                     std::shared_ptr<void> context);

// cudaLaunchKernelEx. Each thread gets its own copy of the arguments, as on a GPU.
template <class... Parameters, class... Arguments>
inline cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                 Arguments&&... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  auto call = std::make_shared<Call>(kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...));
  return run_grid(
      *config, reinterpret_cast<const void*>(kernel),
      [](void* context) {
        auto& [function, parameters] = *static_cast<Call*>(context);
        std::apply(function, parameters);
      },
      std::move(call));
}

}  // namespace cuda_on_cpu

// The toolkit's own, a template too, hands the arguments on without their types.
#define cudaLaunchKernelEx ::cuda_on_cpu::launch_kernel
