// A layer's tensors in the order in which decode_step and decode_layers take them; Python reads their names from
// _C.layer_tensors(). A tensor that a layer does not have is an empty one.
#pragma once

#include <cstddef>

#define ADEPT_LAYER_TENSORS                                                                                            \
  input_gamma, input_beta, w_qkv, qkv_scales, b_qkv, q_gamma, q_beta, k_gamma, k_beta, w_dense, dense_scales, b_dense, \
      mlp_gamma, mlp_beta, w_up, up_scales, b_up, w_down_t, down_scales, b_down
#define ADEPT_STRING_OF(...) #__VA_ARGS__
#define ADEPT_STRING(...) ADEPT_STRING_OF(__VA_ARGS__)

namespace adept {

namespace layer_tensor {
enum : size_t { ADEPT_LAYER_TENSORS, kCount };
}

constexpr const char kLayerTensorNames[] = ADEPT_STRING(ADEPT_LAYER_TENSORS);

}  // namespace adept
