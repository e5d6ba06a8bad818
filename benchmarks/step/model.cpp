#include "model.h"

#include <algorithm>
#include <cmath>

#include "cases.h"
#include "fill.h"
#include "tiles.h"

namespace adept::bench {
namespace {

// The deviations of what fill.h writes, of -1 to 1, of its numbers in 8 bits, of whole numbers from -8 to 7.
constexpr float kUnitDeviation = 0.57735f, kFloat8Deviation = 0.555f, kInt4Deviation = 4.61f;
constexpr float kScaleSpread = 0.25f;  // so that a scale that belongs to another output shows
constexpr float kBiasSize = 0.5f;
// Pre-activations are near 1, so that this far away a neuron is active or inactive for every input.
constexpr float kFar = 10.0f;
// Of the down-projection's outputs for neurons near 1: those here are near kFar².
constexpr float kDownSize = 1.0f / 16;
constexpr int64_t kReservedBytes = int64_t{1} << 30;  // that caches leave, as far as there is so much
constexpr uint32_t kLayerSeeds = 100;
constexpr double kRopeTheta = 25000;

int64_t scale_bytes(Format format, int64_t rows, int64_t cols, bool transposed) {
  if (format == Format::kFloat16) return 0;
  return format == Format::kFloat8 ? 4 * (transposed ? cols : rows) : 2 * rows * (cols / kGroupSize128);
}

// A tensor is filled as a whole, and then handed over.
template <class T>
DeviceMemory filled(Buffer<T> buffer, const std::function<void(const Buffer<T>&)>& rule) {
  rule(buffer);
  return buffer.release();
}

DeviceMemory values_of(Format format, int64_t rows, int64_t cols, float size, uint32_t seed) {
  const int64_t count = rows * cols;
  if (format == Format::kFloat16) {
    return filled<__half>(Buffer<__half>(count), [&](auto& to) { fill(to, 0, size / kUnitDeviation, seed); });
  }
  if (format == Format::kFloat8) {
    return filled<uint8_t>(Buffer<uint8_t>(count), [&](auto& to) { fill_float8(to, seed); });
  }
  return filled<uint8_t>(Buffer<uint8_t>(count / 2), [&](auto& to) { fill_bytes(to, seed); });
}

DeviceMemory scales_of(Format format, int64_t bytes, float size, uint32_t seed) {
  if (format == Format::kFloat16) return DeviceMemory(0);
  if (format == Format::kFloat8) {
    const float mean = size / kFloat8Deviation;
    return filled<float>(Buffer<float>(bytes / 4), [&](auto& to) { fill(to, mean, kScaleSpread * mean, seed); });
  }
  const float mean = size / kInt4Deviation;
  return filled<__half>(Buffer<__half>(bytes / 2), [&](auto& to) { fill(to, mean, kScaleSpread * mean, seed); });
}

Buffer<float> vector_of(int64_t count, float mean, float size, uint32_t seed) {
  Buffer<float> vector(count);
  fill(vector, mean, size, seed);
  return vector;
}

}  // namespace

Weights::Weights(Format format, int64_t rows, int64_t cols, bool transposed, float size, uint32_t seed, bool in_tiles)
    : format_(format),
      rows_(rows),
      cols_(cols),
      in_tiles_(in_tiles),
      values_(values_of(format, rows, cols, size / std::sqrt(static_cast<float>(transposed ? rows : cols)), seed)),
      scales_(scales_of(format, scale_bytes(format, rows, cols, transposed),
                        size / std::sqrt(static_cast<float>(transposed ? rows : cols)), seed + 1)) {
  if (!in_tiles) return;
  values_ = transposed ? in_strips(matrix()) : in_tiles_of_rows(matrix());
  if (group_of(format) > 0) scales_ = DeviceMemory(0);  // they are among the values
}

NormWeights::NormWeights(int64_t size, uint32_t seed)
    : gamma_(vector_of(size, 1, 0.1f, seed)), beta_(vector_of(size, 0, 0.1f, seed + 1)) {}

Layer::Layer(const Shapes& shapes, Format format, bool in_tiles, uint32_t seed)
    : input_norm(shapes.hidden, seed),
      q_norm(shapes.head_dim(), seed + 2),
      k_norm(shapes.head_dim(), seed + 4),
      mlp_norm(shapes.hidden, seed + 6),
      qkv(format, 3 * shapes.hidden, shapes.hidden, false, 1, seed + 8, in_tiles),
      dense(format, shapes.hidden, shapes.hidden, false, 1, seed + 10, in_tiles),
      up(format, shapes.intermediate, shapes.hidden, false, 1, seed + 12, in_tiles),
      down(format, shapes.intermediate, shapes.hidden, true, kDownSize, seed + 14, in_tiles),
      qkv_bias(vector_of(3 * shapes.hidden, 0, kBiasSize, seed + 16)),
      dense_bias(vector_of(shapes.hidden, 0, kBiasSize, seed + 17)),
      up_bias(vector_of(shapes.intermediate, kFar, 0, seed + 18)),
      down_bias(vector_of(shapes.hidden, 0, kBiasSize, seed + 19)) {}

Model::Model(const Shapes& shapes, const std::string& format, bool in_tiles)
    : shapes_(shapes),
      format_(format_of(format)),
      final_norm_(shapes.hidden, kLayerSeeds * static_cast<uint32_t>(shapes.layers)),
      head_(format_of(head_format(format)), shapes.vocab, shapes.hidden, false, 1,
            kLayerSeeds * static_cast<uint32_t>(shapes.layers) + 2, in_tiles) {
  layers_.reserve(static_cast<size_t>(shapes.layers));
  for (int64_t i = 0; i < shapes.layers; ++i) {
    layers_.emplace_back(shapes, format_, in_tiles, kLayerSeeds * static_cast<uint32_t>(i));
  }
}

void Model::set_sparsity(int64_t percent) {
  const int64_t active = active_neurons(shapes_, percent);
  std::vector<float> bias(static_cast<size_t>(shapes_.intermediate));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto seed = static_cast<uint32_t>(kLayerSeeds * i + 18);
    const std::vector<bool> is_active = choose(shapes_.intermediate, active, seed);
    for (size_t neuron = 0; neuron < bias.size(); ++neuron) bias[neuron] = is_active[neuron] ? kFar : -kFar;
    layers_[i].up_bias.upload(bias);
  }
}

Tables::Tables(const Shapes& shapes, int64_t positions)
    : embedding(shapes.vocab * shapes.hidden),
      cos(positions * (shapes.rotary() / 2)),
      sin(positions * (shapes.rotary() / 2)),
      q_norm(shapes.head_dim(), kLayerSeeds * static_cast<uint32_t>(shapes.layers) + 6),
      k_norm(shapes.head_dim(), kLayerSeeds * static_cast<uint32_t>(shapes.layers) + 8) {
  fill(embedding, 0, 1, kLayerSeeds * static_cast<uint32_t>(shapes.layers) + 4);
  const int64_t half = shapes.rotary() / 2;
  std::vector<float> cosines, sines;
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) / std::pow(kRopeTheta, static_cast<double>(i) / half);
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  cos.upload(cosines);
  sin.upload(sines);
}

namespace {

// How many of the layers' caches there is room for.
int64_t fitting_caches(const Shapes& shapes, int64_t bytes) {
  const int64_t free = free_bytes();
  const int64_t room = free - std::min(free / 8, kReservedBytes);
  if (room < bytes) {
    throw OutOfMemory("the cache of a layer takes " + std::to_string(bytes / 1000000) + " MB, and " +
                      std::to_string(room / 1000000) + " MB are left for it");
  }
  return std::min(shapes.layers, room / bytes);
}

}  // namespace

Caches::Caches(const Shapes& shapes, int64_t tokens, int64_t positions)
    : shapes_(shapes),
      tokens_(tokens),
      positions_(positions),
      distinct_(fitting_caches(shapes, cache_bytes(shapes, tokens, positions))),
      data_(distinct_ * cache_bytes(shapes, tokens, positions) / 2) {
  const int64_t count = data_.count() / distinct_;
  for (int64_t i = 0; i < distinct_; ++i) {
    fill(data_.get() + i * count, count, 0, 1, kLayerSeeds * static_cast<uint32_t>(i) + 20);
  }
}

CacheLayer Caches::layer(int64_t i) const {
  __half* const cache = data_.get() + i % distinct_ * (data_.count() / distinct_);
  return {Format::kFloat16, cache, tokens_, shapes_.heads, positions_, shapes_.head_dim()};
}

}  // namespace adept::bench
