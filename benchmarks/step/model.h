// A model of random weights in one format, every layer with its own; and the caches of its layers.
//
// Tensors are filled by seeds: number `part` of layer i by 100 i + part, what belongs to no layer by 100 layers + part.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <string>
#include <vector>

#include "device.h"
#include "operands.h"
#include "options.h"

namespace adept::bench {

constexpr float kEps = 1e-5f;

// A matrix and its memory.
class Weights {
 public:
  // Outputs are near `size` where inputs are near 1.
  Weights(Format format, int64_t rows, int64_t cols, bool transposed, float size, uint32_t seed, bool in_tiles);

  Matrix matrix() const { return {format_, values_.get(), scales_.get(), rows_, cols_, in_tiles_}; }

 private:
  Format format_;
  int64_t rows_;
  int64_t cols_;
  bool in_tiles_;
  DeviceMemory values_;
  DeviceMemory scales_;
};

// LayerNorm's two vectors.
class NormWeights {
 public:
  NormWeights(int64_t size, uint32_t seed);

  Norm norm() const { return {gamma_.get(), beta_.get(), kEps}; }

 private:
  Buffer<float> gamma_;
  Buffer<float> beta_;
};

struct Layer {
  Layer(const Shapes& shapes, Format format, bool in_tiles, uint32_t seed);

  NormWeights input_norm, q_norm, k_norm, mlp_norm;
  Weights qkv, dense, up, down;
  Buffer<float> qkv_bias, dense_bias, up_bias, down_bias;
};

class Model {
 public:
  // Throws OutOfMemory.
  Model(const Shapes& shapes, const std::string& format, bool in_tiles);

  // Make exactly that percentage of each layer's neurons inactive, by their bias, anywhere among them.
  void set_sparsity(int64_t percent);

  const Shapes& shapes() const { return shapes_; }
  Format format() const { return format_; }
  const Layer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  const NormWeights& final_norm() const { return final_norm_; }
  const Weights& head() const { return head_; }

 private:
  Shapes shapes_;
  Format format_;
  std::vector<Layer> layers_;
  NormWeights final_norm_;
  Weights head_;
};

// What does not depend on the weights' format.
struct Tables {
  Tables(const Shapes& shapes, int64_t positions);

  Buffer<__half> embedding;    // [vocab, hidden]
  Buffer<float> cos, sin;      // [positions, rotary / 2]
  NormWeights q_norm, k_norm;  // for a rotary_append without a model
};

// The caches of all layers, full of numbers; where memory is short, fewer than layers, which take turns.
class Caches {
 public:
  // Throws OutOfMemory where there is no room for one.
  Caches(const Shapes& shapes, int64_t tokens, int64_t positions);

  int64_t tokens() const { return tokens_; }
  int64_t positions() const { return positions_; }
  int64_t distinct() const { return distinct_; }
  CacheLayer layer(int64_t i) const;  // all follow one another

 private:
  Shapes shapes_;
  int64_t tokens_;
  int64_t positions_;
  int64_t distinct_;
  Buffer<__half> data_;  // [distinct, k/v, tokens, heads, positions, head_dim]
};

}  // namespace adept::bench
