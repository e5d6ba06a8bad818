// The loops of the sparse down-projection: y += sum of activation * row over the rows of the transposed weight, for a
// list of the active neurons.
//
// Layout: a task takes a part of the list and a strip of columns. Float rows are added eight at a time to sums in the
// first-level cache, packed rows up to 48 at a time to sums of 64 columns in registers. The next rows are prefetched
// column by column, because the hardware cannot predict them. mlp.cpp has the lower bound and the limit.
//
// Parts begin at fixed neurons, and a part adds its neurons in order. What a token adds for another token's neuron is
// exactly 0, so its sums depend neither on the other tokens nor on the number of threads.
#pragma once

#include "inputs.h"
#include "products.h"

namespace adept::ADEPT_ISA {

constexpr int64_t kPartNeurons = 512;    // a panel of them fits in the second-level cache
constexpr int64_t kStripColumns = 2048;  // at most
constexpr int64_t kTasksPerThread = 2;
constexpr int kRowsAtOnce = 8;
constexpr int64_t kQuad = 4;  // packed rows are added four at a time

// The neurons that are active for any token, in order, and their activations, in parts: part p has those of the p-th
// kPartNeurons. The list of each part is padded to a multiple of 16 with its last neuron and activations of 0.
class ActiveNeurons {
 public:
  struct Part {
    int64_t begin, end;  // of the list, without padding; begin is a multiple of 16
  };

  // activations: [tokens, intermediate]
  ActiveNeurons(const Threads& threads, const float* activations, int64_t tokens, int64_t intermediate)
      : tokens_(tokens),
        rows_(intermediate + (most_parts(intermediate) + 1) * kLanes),
        values_(tokens * (intermediate + most_parts(intermediate) * kLanes)),
        parts_(most_parts(intermediate)) {
    for (int64_t first = 0; first < intermediate; first += kPartNeurons)
      add_part(activations, first, std::min(kPartNeurons, intermediate - first), intermediate);
    parallel_pieces(threads, tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) gather_values(activations + t * intermediate, values_ + t * padded_);
    });
  }

  int64_t count() const { return count_; }
  int64_t padded() const { return padded_; }
  int64_t tokens() const { return tokens_; }
  int64_t part_rows() const { return kPartNeurons; }  // of a part at most, padding included
  int64_t row(int64_t index) const { return rows_.data()[index]; }
  const float* activations(int64_t token) const { return values_.data() + token * padded_; }
  // Those that have an active neuron.
  int64_t parts() const { return part_count_; }
  const Part& part(int64_t index) const { return parts_.data()[index]; }

 private:
  static int64_t most_parts(int64_t neurons) { return (neurons + kPartNeurons - 1) / kPartNeurons; }

  void add_part(const float* activations, int64_t first, int64_t neurons, int64_t intermediate) {
    int64_t end = padded_;
    for_columns(neurons, [&](int64_t c, int lanes) {
      uint32_t active = 0;
      for (int64_t t = 0; t < tokens_; ++t)
        active |= nonzero_lanes(load_first(activations + t * intermediate + first + c, lanes));
      end += store_selected(rows_ + end, int32_t(first + c), active);
    });
    if (end == padded_) return;
    parts_[part_count_++] = {padded_, end};
    count_ += end - padded_;
    padded_ = round_up(end, kLanes);
    std::fill(rows_ + end, rows_ + padded_, rows_[end - 1]);
  }

  void gather_values(const float* activations, float* values) {
    for (int64_t i = 0; i < padded_; i += kLanes) store(values + i, gather(activations, rows_ + i));
    for (int64_t p = 0; p < part_count_; ++p)
      std::fill(values + parts_[p].end, values + round_up(parts_[p].end, kLanes), 0.0f);
  }

  int64_t tokens_;
  Buffer<int32_t> rows_;
  Buffer<float> values_;  // [tokens, padded]
  Buffer<Part> parts_;
  int64_t count_ = 0, padded_ = 0, part_count_ = 0;
};

// Divides the list and the columns into tasks: a part, and as narrow a strip of columns as the threads need.
class DownProjTasks {
 public:
  struct Task {
    int64_t part, begin, end;           // of the list; end is padded to whole quads
    int64_t first_column, last_column;  // last_column is past the end
  };

  DownProjTasks(const Threads& threads, const ActiveNeurons& active, int64_t columns)
      : threads_(threads), active_(active), columns_(columns) {
    const int64_t wanted = kTasksPerThread * threads.count / std::max<int64_t>(1, active.parts());
    const int64_t width = std::min(kStripColumns, columns / std::max<int64_t>(1, wanted));
    strip_ = round_up(std::max<int64_t>(1, width), kTransposedColumns);
  }

  int64_t parts() const { return active_.parts(); }

  template <class Run>
  void run(const Run& run) const {
    const int64_t strips = (columns_ + strip_ - 1) / strip_;
    parallel(threads_, parts() * strips, [&](int64_t i) {
      const int64_t part = i / strips, strip = i % strips;
      const ActiveNeurons::Part& list = active_.part(part);
      run(Task{part, list.begin, round_up(list.end, kQuad), strip * strip_, std::min(columns_, (strip + 1) * strip_)});
    });
  }

 private:
  const Threads& threads_;
  const ActiveNeurons& active_;
  int64_t columns_, strip_;
};

// sums[t][c] += sum over i of activations[t][i] * rows[i][c], for 16 lanes at a time.
template <int Rows, int Tokens, class Weight>
inline void add_rows(const Weight* const (&rows)[Rows], const Weight* const (&next)[Rows],
                     const float (&activations)[Tokens][Rows], int64_t columns, float* sums, int64_t stride) {
  for_columns(columns, [&](int64_t c, int lanes) {
    F32x16 weights[Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      weights[i] = lanes == kLanes ? load(rows[i] + c) : load_first(rows[i] + c, lanes);
      if (c * int64_t(sizeof(Weight)) % kCacheLine == 0) prefetch(next[i] + c);
    }
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t) {
      F32x16 total = load_first(sums + t * stride + c, lanes);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) total = fma(weights[i], broadcast(activations[t][i]), total);
      store_first(sums + t * stride + c, total, lanes);
    }
  });
}

// Adds to sums: [tokens, stride].
template <class Weight>
void add_float_rows(const Weight* w, int64_t cols, const ActiveNeurons& active, const DownProjTasks::Task& task,
                    float* sums, int64_t stride) {
  constexpr int kTokens = 4;
  for_blocks<kRowsAtOnce>(task.begin, active.part(task.part).end, [&](int64_t index, auto count) {
    constexpr int kRows = decltype(count)::value;
    const Weight *rows[kRows], *next[kRows];
    for (int i = 0; i < kRows; ++i) {
      rows[i] = w + active.row(index + i) * cols + task.first_column;
      next[i] = w + active.row(std::min(index + i + kRows, active.padded() - 1)) * cols + task.first_column;
    }
    for_blocks<kTokens>(0, active.tokens(), [&](int64_t token, auto token_count) {
      constexpr int kCount = decltype(token_count)::value;
      float activations[kCount][kRows];
      for (int t = 0; t < kCount; ++t)
        for (int i = 0; i < kRows; ++i) activations[t][i] = active.activations(token + t)[index + i];
      add_rows(rows, next, activations, task.last_column - task.first_column, sums + token * stride + task.first_column,
               stride);
    });
  });
}

// Each token's activations as 256 * high + low, unsigned, because relu² is never negative.
class FixedActivations {
 public:
  explicit FixedActivations(const ActiveNeurons& active)
      : stride_(active.padded()),
        high_(active.tokens() * stride_),
        low_(active.tokens() * stride_),
        scales_(active.tokens()) {
    for (int64_t token = 0; token < active.tokens(); ++token) {
      const float* activations = active.activations(token);
      F32x16 extreme = broadcast(0.0f), taint = broadcast(0.0f);
      for (int64_t i = 0; i < stride_; i += kLanes) {
        extreme = max(load(activations + i), extreme);
        taint = fma(load(activations + i), broadcast(0.0f), taint);  // NaN once anything is not finite
      }
      scales_[token] = largest(extreme) / 65535 + sum(taint);
      const float inverse = scales_[token] > std::numeric_limits<float>::min() ? 1 / scales_[token] : 0;
      for (int64_t i = 0; i < stride_; i += kLanes) {
        const I32x16 value = to_int(mul(load(activations + i), broadcast(inverse)));
        store_bytes(high_ + token * stride_ + i, shift_right_8(value));
        store_bytes(low_ + token * stride_ + i, value);
      }
    }
  }

  const uint8_t* high(int64_t token, int64_t index) const { return high_.data() + token * stride_ + index; }
  const uint8_t* low(int64_t token, int64_t index) const { return low_.data() + token * stride_ + index; }
  float scale(int64_t token) const { return scales_.data()[token]; }

 private:
  int64_t stride_;
  Buffer<uint8_t> high_, low_;
  Buffer<float> scales_;
};

// Packed rows that are added together at most; a part is cut into equal blocks.
constexpr int64_t kBlockRows = 48;
inline int64_t block_rows(int64_t rows) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  return blocks == 0 ? kQuad : round_up((rows + blocks - 1) / blocks, kQuad);
}

constexpr int kBlockTokens = 2;  // 16 sums for each 64 columns

// Pointers to the rows of a block and of the next block.
template <class Element>
struct RowPointers {
  RowPointers(const Element* w, int64_t stride, const ActiveNeurons& active, int64_t begin, int64_t end)
      : count(end - begin) {
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = w + active.row(begin + i) * stride;
      next[i] = w + active.row(std::min(end + i, active.padded() - 1)) * stride;
    }
  }

  void prefetch_next(int64_t at) const {
    for (int64_t i = 0; i < count; ++i) prefetch(next[i] + at);
  }

  const int64_t count;  // whole quads
  const Element *rows[kBlockRows], *next[kBlockRows];
};

// Sums of 64 columns for a few tokens as 256 * high + low, in registers.
template <int Tokens>
struct ColumnSums {
  // sums: [tokens, high and low, stride], at the first token and column; null for zeros.
  ColumnSums(const int32_t* sums, int64_t stride) {
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 16
      for (int i = 0; i < 4; ++i) {
        high[t][i] = sums ? load(sums + 2 * t * stride + i * kLanes) : zero_i32();
        low[t][i] = sums ? load(sums + (2 * t + 1) * stride + i * kLanes) : zero_i32();
      }
  }

  void store_to(int32_t* sums, int64_t stride) const {
#pragma GCC unroll 16
    for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 16
      for (int i = 0; i < 4; ++i) {
        store(sums + 2 * t * stride + i * kLanes, high[t][i]);
        store(sums + (2 * t + 1) * stride + i * kLanes, low[t][i]);
      }
  }

  I32x16 high[Tokens][4], low[Tokens][4];
};

// sums: int32 [tokens, high and low, stride], set for the task's columns; stride is the padded width of a row.
inline void add_int8_rows(const int8_t* w, int64_t stride, const ActiveNeurons& active,
                          const FixedActivations& activations, const DownProjTasks::Task& task, int32_t* sums) {
  const int64_t step = block_rows(task.end - task.begin);
  for (int64_t index = task.begin; index < task.end; index += step) {
    const RowPointers<int8_t> at(w, stride, active, index, std::min(index + step, task.end));
    for (int64_t c = task.first_column; c < task.last_column; c += kCacheLine) {
      at.prefetch_next(c);
      for_blocks<kBlockTokens>(0, active.tokens(), [&](int64_t token, auto token_count) {
        constexpr int kTokens = decltype(token_count)::value;
        int32_t* to = sums + 2 * token * stride + c;
        ColumnSums<kTokens> block(index == task.begin ? nullptr : to, stride);
        for (int64_t i = 0; i < at.count; i += 4) {
          U8x64 rows[4];
#pragma GCC unroll 16
          for (int r = 0; r < 4; ++r) rows[r] = load_bytes(at.rows[i + r] + c);
          interleave4(rows);
#pragma GCC unroll 16
          for (int t = 0; t < kTokens; ++t) {
            const U8x64 activations_high = broadcast4(activations.high(token + t, index + i));
            const U8x64 activations_low = broadcast4(activations.low(token + t, index + i));
#pragma GCC unroll 16
            for (int v = 0; v < 4; ++v) {
              block.high[t][v] = dot4(block.high[t][v], activations_high, rows[v]);
              block.low[t][v] = dot4(block.low[t][v], activations_low, rows[v]);
            }
          }
        }
        block.store_to(to, stride);
      });
    }
  }
}

}  // namespace adept::ADEPT_ISA
