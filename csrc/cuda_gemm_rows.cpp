// The bindings of what surrounds a GEMM: rows that are prepared and finished, and weights that are widened.
#include "cuda_ops.h"

#include "cuda/kernels.h"
#include "cuda/torch_arguments.h"
#include "gpu_matrices.h"

namespace adept::cuda_ops {
namespace {

using cuda::current_stream;

using TwoTensors = std::tuple<Tensor, Tensor>;

// The results: inputs [rows, cols] and the powers of tokens.
struct Prepared {
  Prepared(const Tensor& like, int64_t tokens, int64_t cols, int64_t raised, int64_t rows, ScalarType dtype)
      : values(torch::stable::new_empty(like, {rows, cols}, dtype)),
        powers(torch::stable::new_empty(like, {tokens}, ScalarType::Float)) {
    ADEPT_REQUIRE(raised >= 0 && raised <= 64, "raised is ", raised, "; expected 0 to 64");
    const std::optional<Format> format = float_format(values);
    ADEPT_REQUIRE(format.has_value(), "dtype is ", torch::headeronly::toString(dtype),
                  "; expected Float, Half or BFloat16");
    to = {*format, values.mutable_data_ptr(), output(powers), tokens, rows, cols, int(raised)};
  }

  static void check(int64_t tokens, int64_t cols, int64_t rows) {
    ADEPT_REQUIRE(cols % cuda::kColsMultiple == 0 && cols <= cuda::kMaxPreparedCols, "x has ", cols,
                  " columns; expected a multiple of ", cuda::kColsMultiple, " up to ", cuda::kMaxPreparedCols);
    const int64_t most = tokens + cuda::kMaxPaddingRows;
    ADEPT_REQUIRE(rows >= tokens && rows <= most, "rows is ", rows, "; expected ", tokens, " to ", most);
  }

  Tensor values, powers;
  cuda::PreparedRows to;
};

TwoTensors prepare_rows(const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta, double eps,
                        int64_t raised, int64_t rows, ScalarType dtype) {
  const OnOneDevice device({"x", x}, {{"gamma", gamma}, {"beta", beta}});
  ADEPT_REQUIRE(x.dim() == 2, "x has shape ", shape_of(x), "; expected [tokens, columns]");
  const TokenInputs in("x", x, x.size(1));
  const Norm norm = optional_norm("", gamma, beta, eps, x.size(1));
  Prepared::check(in.tokens(), x.size(1), rows);
  const Prepared prepared(x, in.tokens(), x.size(1), raised, rows, dtype);
  check(cuda::prepare_rows(in.at(), norm, prepared.to, current_stream(x)), "prepare_rows");
  return {prepared.values, prepared.powers};
}

cuda::Product product_of(const Tensor& product, const Tensor& powers, const OptionalTensor& scales,
                         const OptionalTensor& bias) {
  const int64_t dim = product.dim(), tokens = powers.numel();
  const std::optional<Format> format = float_format(product);
  ADEPT_REQUIRE((dim == 2 || dim == 3) && product.is_contiguous() && format.has_value(), "product has shape ",
                shape_of(product), " and dtype ", torch::headeronly::toString(product.scalar_type()),
                "; expected contiguous floats [parts, rows, columns], or of one part");
  const int64_t rows = product.size(dim - 2), cols = product.size(dim - 1), parts = dim == 3 ? product.size(0) : 1;
  check_sizes("product", rows, cols);
  ADEPT_REQUIRE(parts > 0 && rows >= tokens, "product has shape ", shape_of(product), " and powers ", tokens,
                " tokens; expected a row or more for each, in one part or more");
  return {*format,
          aligned("product", product.const_data_ptr(), bytes_of(*format)),
          parts,
          rows * cols,
          vector("powers", powers, tokens),
          scales ? vector("scales", *scales, cols) : nullptr,
          bias ? vector("bias", *bias, cols) : nullptr,
          tokens,
          cols};
}

TwoTensors activate_rows(const Tensor& product, const Tensor& powers, const OptionalTensor& scales, const Tensor& bias,
                         int64_t raised, int64_t rows) {
  const OnOneDevice device({"product", product}, {{"powers", powers}, {"scales", scales}, {"bias", bias}});
  const cuda::Product of = product_of(product, powers, scales, bias);
  ADEPT_REQUIRE(of.parts == 1, "product has ", of.parts, " parts; expected one");
  Prepared::check(of.tokens, of.cols, rows);
  const Prepared prepared(product, of.tokens, of.cols, raised, rows, product.scalar_type());
  check(cuda::activate_rows(of, prepared.to, current_stream(product)), "activate_rows");
  return {prepared.values, prepared.powers};
}

Tensor finish_rows(const Tensor& product, const Tensor& powers, const OptionalTensor& scales,
                   const OptionalTensor& bias, bool relu_squared, const OptionalTensor& residual) {
  const OnOneDevice device({"product", product},
                           {{"powers", powers}, {"scales", scales}, {"bias", bias}, {"residual", residual}});
  const cuda::Product of = product_of(product, powers, scales, bias);
  std::optional<TokenInputs> added;
  if (residual) added.emplace("residual", *residual, of.cols);
  ADEPT_REQUIRE(!added || added->tokens() == of.tokens, "residual has shape ", shape_of(*residual), "; expected [",
                of.tokens, ", ", of.cols, "]");
  const Tensor out = torch::stable::new_empty(product, {of.tokens, of.cols}, ScalarType::Float);
  const cuda::FinishRows finish{of, relu_squared, added ? added->at() : nullptr, output(out)};
  check(cuda::finish_rows(finish, current_stream(product)), "finish_rows");
  return out;
}

Tensor widen(const Tensor& w, const OptionalTensor& scales, int64_t cols, int64_t start, int64_t stop,
             ScalarType dtype) {
  const OnOneDevice device({"w", w}, {{"scales", scales}});
  cuda::Widen widen = matrix_to_widen(w, scales, cols);
  ADEPT_REQUIRE(0 <= start && start <= stop && stop <= widen.rows, "start and stop are ", start, " and ", stop,
                "; expected rows of the ", widen.rows, " of w");
  const char* const given = torch::headeronly::toString(dtype);
  const bool half = dtype == ScalarType::Half;
  ADEPT_REQUIRE(half || dtype == ScalarType::BFloat16, "dtype is ", given, "; expected Half or BFloat16");
  widen.start = start;
  widen.stop = stop;
  widen.out_format = half ? Format::kFloat16 : Format::kBFloat16;
  ADEPT_REQUIRE(is_quantized(widen.format) || widen.format == widen.out_format, "dtype is ", given,
                "; expected that of w");
  const Tensor out = torch::stable::new_empty(w, {stop - start, cols}, dtype);
  widen.out = out.mutable_data_ptr();
  check(cuda::widen(widen, current_stream(w)), "widen");
  return out;
}

}  // namespace

void implement_gemm_rows(torch::stable::detail::StableLibrary& library) {
  library.impl("prepare_rows", TORCH_BOX(&prepare_rows));
  library.impl("activate_rows", TORCH_BOX(&activate_rows));
  library.impl("finish_rows", TORCH_BOX(&finish_rows));
  library.impl("widen", TORCH_BOX(&widen));
}

}  // namespace adept::cuda_ops
