// Checks tensors and converts them to operands. A wrong argument raises an error of one sentence that names it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "operands.h"

namespace adept {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

// Python gets a RuntimeError with only this sentence; torch's macro would add paths of the build. A macro, so that the
// sentence is built only on an error.
#define ADEPT_REQUIRE(condition, ...)             \
  do {                                            \
    if (!(condition)) ::adept::fail(__VA_ARGS__); \
  } while (false)

// The maximum of rows or columns of a matrix: kernels count them in 32 bits, and sums and products of two fit in 64.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
// The maximum of counts and positions: one more still fits in 64 bits.
constexpr int64_t kMaxCount = std::numeric_limits<int64_t>::max() - 1;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

using Shape = std::initializer_list<int64_t>;

inline bool has_shape(const Tensor& tensor, Shape shape) {
  if (tensor.dim() != int64_t(shape.size())) return false;
  int64_t dim = 0;
  for (const int64_t size : shape)
    if (tensor.size(dim++) != size) return false;
  return true;
}

inline void check_shape(const char* name, const Tensor& tensor, Shape shape) {
  if (!has_shape(tensor, shape)) {
    std::string expected;
    for (const int64_t size : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
    fail(name, " has shape ", shape_of(tensor), "; expected [", expected, "]");
  }
  ADEPT_REQUIRE(tensor.is_contiguous(), name, " is not contiguous");
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  ADEPT_REQUIRE(tensor.scalar_type() == dtype, name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
                "; expected ", torch::headeronly::toString(dtype));
}

inline void check_sizes(const char* name, int64_t rows, int64_t cols) {
  ADEPT_REQUIRE(rows >= 0 && rows <= kMaxSize && cols >= 0 && cols <= kMaxSize, name, " has ", rows, " rows and ", cols,
                " columns; expected at most ", kMaxSize, " of each");
}

// Compiled code may assume that addresses of elements are multiples of their size.
inline const void* aligned(const char* name, const void* address, size_t element_size) {
  ADEPT_REQUIRE(reinterpret_cast<uintptr_t>(address) % element_size == 0, name, " is not aligned to its elements of ",
                element_size, " bytes");
  return address;
}

template <class T>
const T* data(const char* name, const Tensor& tensor) {
  return static_cast<const T*>(aligned(name, tensor.const_data_ptr(), sizeof(T)));
}

inline float* output(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// [size] in float32. `prefix`: of the name in errors.
inline const float* vector(const char* name, const Tensor& tensor, int64_t size, const char* prefix = "") {
  ADEPT_REQUIRE(has_shape(tensor, {size}), prefix, name, " has shape ", shape_of(tensor), "; expected [", size, "]");
  ADEPT_REQUIRE(tensor.is_contiguous(), prefix, name, " is not contiguous");
  ADEPT_REQUIRE(tensor.scalar_type() == ScalarType::Float, prefix, name, " has dtype ",
                torch::headeronly::toString(tensor.scalar_type()), "; expected ",
                torch::headeronly::toString(ScalarType::Float));
  return data<float>(name, tensor);
}

inline Norm norm(const char* prefix, const Tensor& gamma, const Tensor& beta, double eps, int64_t size) {
  return {vector("gamma", gamma, size, prefix), vector("beta", beta, size, prefix), float(eps)};
}

inline Norm optional_norm(const char* prefix, const OptionalTensor& gamma, const OptionalTensor& beta, double eps,
                          int64_t size) {
  ADEPT_REQUIRE(gamma.has_value() == beta.has_value(), "only one of ", prefix, "gamma and ", prefix,
                "beta is given; expected both or none");
  return gamma ? norm(prefix, *gamma, *beta, eps, size) : Norm{};
}

inline std::optional<Format> float_format(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Format::kFloat32;
    case ScalarType::Half: return Format::kFloat16;
    case ScalarType::BFloat16: return Format::kBFloat16;
    default: return std::nullopt;
  }
}

// Bytes of an element.
inline size_t bytes_of(Format format) { return format == Format::kFloat32 ? 4 : is_quantized(format) ? 1 : 2; }

// A float matrix [rows, cols].
inline Matrix float_matrix(const char* name, const Tensor& values, int64_t rows, int64_t cols) {
  const std::optional<Format> format = float_format(values);
  ADEPT_REQUIRE(format.has_value(), name, " has dtype ", torch::headeronly::toString(values.scalar_type()),
                " and no scales; expected float32, float16 or bfloat16");
  check_shape(name, values, {rows, cols});
  check_sizes(name, rows, cols);
  return {*format, aligned(name, values.const_data_ptr(), bytes_of(*format)), nullptr, rows, cols};
}

// The number of rows of its matrix that lm_head computes.
inline void check_rows(int64_t rows) {
  ADEPT_REQUIRE(rows >= 0 && rows <= kMaxSize, "rows is ", rows, "; expected 0 to ", kMaxSize);
}

// Inputs [tokens, columns] in float32 or bfloat16, as floats at at().
class TokenInputs {
 public:
  TokenInputs(const char* name, const Tensor& given, int64_t columns) : dtype(given.scalar_type()), tensor_(given) {
    ADEPT_REQUIRE(given.dim() == 2 && given.size(1) == columns, name, " has shape ", shape_of(given),
                  "; expected [tokens, ", columns, "]");
    // A tensor without elements may have any size; with columns, memory bounds the number of tokens.
    ADEPT_REQUIRE(columns > 0, name, " has shape ", shape_of(given), "; expected [tokens, 1 or more]");
    ADEPT_REQUIRE(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, name, " has dtype ",
                  torch::headeronly::toString(dtype), "; expected float32 or bfloat16");
    if (dtype == ScalarType::BFloat16) tensor_ = torch::stable::to(given, ScalarType::Float);
    if (!tensor_.is_contiguous()) tensor_ = torch::stable::contiguous(tensor_);
    at_ = data<float>(name, tensor_);
  }

  const float* at() const { return at_; }
  int64_t tokens() const { return tensor_.size(0); }

  Tensor empty(Shape shape) const { return torch::stable::new_empty(tensor_, shape); }

  // `result` in the dtype of the inputs.
  Tensor narrowed(const Tensor& result) const {
    return dtype == ScalarType::Float ? result : torch::stable::to(result, dtype);
  }

  const ScalarType dtype;

 private:
  Tensor tensor_;
  const float* at_;
};

// cos and sin: [positions, half] in float32.
struct RotaryTables {
  RotaryTables(const Tensor& cosines, const Tensor& sines, int64_t head_dim) {
    ADEPT_REQUIRE(cosines.dim() == 2 && cosines.is_contiguous() && cosines.size(1) <= head_dim / 2, "cos has shape ",
                  shape_of(cosines), "; expected contiguous [positions, at most ", head_dim / 2, "]");
    positions = cosines.size(0);
    half = cosines.size(1);
    check_shape("sin", sines, {positions, half});
    check_dtype("cos", cosines, ScalarType::Float);
    check_dtype("sin", sines, ScalarType::Float);
    cos = data<float>("cos", cosines);
    sin = data<float>("sin", sines);
  }

  const float *cos, *sin;
  int64_t positions, half;
};

// int64 [size], of any values.
inline const int64_t* unchecked_indices(const char* name, const Tensor& tensor, int64_t size) {
  check_shape(name, tensor, {size});
  check_dtype(name, tensor, ScalarType::Long);
  return data<int64_t>(name, tensor);
}

inline int64_t* mutable_indices(const char* name, const Tensor& tensor, int64_t size) {
  unchecked_indices(name, tensor, size);
  return static_cast<int64_t*>(tensor.mutable_data_ptr());
}

// [k/v, slots, heads, capacity, head_dim]
inline CacheLayer cache_layer(const Tensor& cache) {
  const std::optional<Format> format = float_format(cache);
  // The sizes of a tensor without elements may be anything, and their products overflow.
  ADEPT_REQUIRE(
      cache.dim() == 5 && cache.size(0) == 2 && cache.numel() > 0 && format.has_value() && cache.is_contiguous(),
      "cache_layer has shape ", shape_of(cache), " and dtype ", torch::headeronly::toString(cache.scalar_type()),
      "; expected contiguous floats [2, slots, heads, max_seq_len, head_dim], each 1 or more");
  aligned("cache_layer", cache.const_data_ptr(), bytes_of(*format));
  return {*format, cache.mutable_data_ptr(), cache.size(1), cache.size(2), cache.size(3), cache.size(4)};
}

// Two sums, int64 [2], or none.
inline int64_t* counts_of(const OptionalTensor& counts) {
  return counts ? mutable_indices("counts", *counts, 2) : nullptr;
}

}  // namespace adept
