// Where torch's function that names the current stream is found: in libtorch_cuda.so, while the process runs.
//
// The extension is not linked to that library, so that one build serves a torch with CUDA and one without, and torch
// loads its libraries locally, so that a weak symbol would stay null. No header of torch or CUDA is needed here, so
// that a test can stand in for the library.
#pragma once

#include <dlfcn.h>

#include <cstdint>

namespace adept::cuda {

struct StreamLookup {
  using Function = int32_t (*)(int32_t device_index, void** stream);  // 0 for success

  Function function = nullptr;
  const char* missing = "";  // what is not there where `function` is null
};

inline StreamLookup look_up_stream_function() {
  // Only what torch has loaded counts: another torch's library must not be loaded beside it. The handle is kept.
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return {nullptr, "this torch has no CUDA: libtorch_cuda.so is not loaded"};
  void* const found = dlsym(library, "aoti_torch_get_current_cuda_stream");
  if (found == nullptr) return {nullptr, "libtorch_cuda.so has no function aoti_torch_get_current_cuda_stream"};
  return {reinterpret_cast<StreamLookup::Function>(found), ""};
}

// Found once for all calls; what is missing is looked for again, since torch may load its library later.
inline StreamLookup stream_function() {
  static const StreamLookup first = look_up_stream_function();
  return first.function != nullptr ? first : look_up_stream_function();
}

}  // namespace adept::cuda
