// mlp: out = residual + down(relu²(up(LayerNorm(x)))), reading only the rows of the down-projection whose neuron is
// active.
//
// Layout: up is [intermediate, hidden]; down is transposed, [intermediate, hidden], so a neuron is a row. Lower bound:
// up's bytes and the rows of down of the active neurons; relu² makes half of random activations exactly 0, and most of
// a trained model's. Limit: memory bandwidth. Going over a list of all rows costs no more than a loop without a list,
// so there is no second loop for dense activations.
#include "down_proj_panels.h"
#include "kernels_of.h"

namespace adept::ADEPT_ISA {
namespace {

class SparseDownProj {
 public:
  SparseDownProj(const Threads& threads, const Mlp& mlp, const ActiveNeurons& active)
      : threads_(threads),
        mlp_(mlp),
        active_(active),
        w_(mlp.down),
        stride_(is_quantized(w_.format) ? round_up(w_.cols, kTransposedColumns) : w_.cols) {}

  template <class Weight>
  void floats() const {
    if (has_many_tokens()) return float_panels<Weight>(threads_, w_, active_, Storing{this});
    const DownProjTasks tasks(threads_, active_, w_.cols);
    Buffer<float> parts(tasks.parts() * part_size());
    tasks.run([&](const DownProjTasks::Task& task) {
      float* sums = parts + task.part * part_size();
      for (int64_t token = 0; token < mlp_.tokens; ++token)
        std::fill(sums + token * w_.cols + task.first_column, sums + token * w_.cols + task.last_column, 0.0f);
      add_float_rows(static_cast<const Weight*>(w_.values), w_.cols, active_, task, sums, w_.cols);
    });
    add_parts(parts, tasks.parts());
  }

  void int8() const {
    const FixedActivations activations(active_);
    if (has_many_tokens())
      return int8_panels(threads_, w_, stride_, active_, activations,
                         [&](int64_t token, int64_t c, int lanes, I32x16 high, I32x16 low) {
                           store_output(token, c, lanes, scaled(activations, token, c, lanes, high, low));
                         });
    const DownProjTasks tasks(threads_, active_, stride_);
    Buffer<int32_t> parts(tasks.parts() * 2 * part_size());  // [parts, tokens, high and low, stride]
    tasks.run([&](const DownProjTasks::Task& task) {
      add_int8_rows(static_cast<const int8_t*>(w_.values), stride_, active_, activations, task,
                    parts + task.part * 2 * part_size());
    });
    each_output([&](int64_t token, int64_t c, int lanes) {
      I32x16 high = zero_i32(), low = zero_i32();
      for (int64_t part = 0; part < tasks.parts(); ++part) {
        const int32_t* sums = parts + (part * mlp_.tokens + token) * 2 * stride_ + c;
        high = add(high, load(sums));
        low = add(low, load(sums + stride_));
      }
      return scaled(activations, token, c, lanes, high, low);
    });
  }

  void int4() const {
    if (has_many_tokens()) return int4_panels(threads_, w_, stride_, active_, Storing{this});
    const DownProjTasks tasks(threads_, active_, stride_);
    Buffer<float> parts(tasks.parts() * part_size());
    tasks.run([&](const DownProjTasks::Task& task) {
      const ScaledActivations activations(static_cast<const Half*>(w_.scales), stride_ / kGroupSize32, active_, task);
      add_int4_rows(static_cast<const uint8_t*>(w_.values), stride_ / 2, active_, activations, task,
                    parts + task.part * part_size(), stride_);
    });
    add_parts(parts, tasks.parts());
  }

 private:
  // Takes a token's sum of some columns.
  struct Storing {
    void operator()(int64_t token, int64_t c, int lanes, F32x16 sum) const { to->store_output(token, c, lanes, sum); }
    const SparseDownProj* to;
  };

  bool has_many_tokens() const { return mlp_.tokens >= kManyTokens; }
  int64_t part_size() const { return mlp_.tokens * stride_; }

  F32x16 scaled(const FixedActivations& activations, int64_t token, int64_t c, int lanes, I32x16 high,
                I32x16 low) const {
    const F32x16 total = fma(to_float(high), broadcast(256.0f), to_float(low));
    const F32x16 scales = load_first(static_cast<const float*>(w_.scales) + c, lanes);
    return mul(total, mul(scales, broadcast(activations.scale(token))));
  }

  void add_parts(const float* parts, int64_t count) const {
    each_output([&](int64_t token, int64_t c, int lanes) {
      F32x16 total = broadcast(0.0f);
      for (int64_t part = 0; part < count; ++part)
        total = add(total, load_first(parts + (part * mlp_.tokens + token) * stride_ + c, lanes));
      return total;
    });
  }

  // out = residual + bias + sum
  void store_output(int64_t token, int64_t c, int lanes, F32x16 sum) const {
    const int64_t at = token * w_.cols + c;
    const F32x16 base = add(load_first(mlp_.base() + at, lanes), load_first(mlp_.down_bias + c, lanes));
    store_first(mlp_.out + at, add(base, sum), lanes);
  }

  // Stores sum(token, column, lanes) as an output.
  template <class Sum>
  void each_output(const Sum& sum) const {
    constexpr int64_t kColumnsPerTask = 512;
    parallel_pieces(threads_, w_.cols, kColumnsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t token = 0; token < mlp_.tokens; ++token)
        for (int64_t c = begin; c < end; c += kLanes) {
          const int lanes = int(std::min<int64_t>(kLanes, end - c));
          store_output(token, c, lanes, sum(token, c, lanes));
        }
    });
  }

  const Threads& threads_;
  const Mlp& mlp_;
  const ActiveNeurons& active_;
  const Matrix& w_;
  const int64_t stride_;  // columns of a row, padding included
};

// Wraps around past 2^63 - 1, as torch's sums of int64 and the CUDA kernels do.
void add_to_count(int64_t& count, int64_t more) { count = int64_t(uint64_t(count) + uint64_t(more)); }

}  // namespace

void mlp(const Threads& threads, const Mlp& mlp) {
  const int64_t intermediate = mlp.up.rows;
  Buffer<float> activations(mlp.tokens * intermediate);
  linear(threads, Linear{mlp.x, mlp.tokens, mlp.norm, mlp.up, mlp.up_bias, nullptr, true, activations});
  for (int64_t token = 0; mlp.slots && token < mlp.tokens; ++token)
    if (mlp.slots[token] < 0) std::fill_n(activations + token * intermediate, intermediate, 0.0f);
  const ActiveNeurons active(threads, activations, mlp.tokens, intermediate);
  if (mlp.counts && mlp.tokens > 0) {
    add_to_count(mlp.counts[0], active.count());
    add_to_count(mlp.counts[1], intermediate);
  }
  const SparseDownProj down_proj(threads, mlp, active);
  switch (mlp.down.format) {
    case Format::kFloat32: return down_proj.floats<float>();
    case Format::kFloat16: return down_proj.floats<Half>();
    case Format::kBFloat16: return down_proj.floats<BFloat16>();
    case Format::kInt8: return down_proj.int8();
    case Format::kInt4G32: return down_proj.int4();
    default: return;  // a GPU's, which no tensor of a CPU has
  }
}

}  // namespace adept::ADEPT_ISA
