// Looks up torch's function for the current stream in libtorch_cuda.so at run time.
//
// The extension is not linked to that library, so one build serves a torch with CUDA and one without. A weak symbol
// would stay null, because torch loads its libraries locally. No header of torch or CUDA is used here, so that a test
// can replace the library.
#pragma once

#include <dlfcn.h>

#include <cstdint>

namespace adept::cuda {

struct StreamLookup {
  using Function = int32_t (*)(int32_t device_index, void** stream);  // 0 for success

  Function function = nullptr;
  const char* missing = "";  // what is missing if `function` is null
};

inline StreamLookup look_up_stream_function() {
  // Only a library that torch has loaded: another torch's must not be loaded beside it. The handle is kept.
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return {nullptr, "this torch has no CUDA: libtorch_cuda.so is not loaded"};
  void* const found = dlsym(library, "aoti_torch_get_current_cuda_stream");
  if (found == nullptr) return {nullptr, "libtorch_cuda.so has no function aoti_torch_get_current_cuda_stream"};
  return {reinterpret_cast<StreamLookup::Function>(found), ""};
}

// Looked up once if found, else again in each call, because torch may load its library later.
inline StreamLookup stream_function() {
  static const StreamLookup first = look_up_stream_function();
  return first.function != nullptr ? first : look_up_stream_function();
}

}  // namespace adept::cuda
