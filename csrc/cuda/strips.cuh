// The sparse down-projection for W in strips (tile_layout.h): units of one share of the neurons and one strip of
// columns, by blocks of 8 warps that keep rows in flight in shared memory.
//
// Layout: a warp has one part of the share. It lists the active ones of 64 neurons at a time and copies their rows, 512
// bytes each at one token, into four slots of four rows of its own; a run of four neurons is one copy. The list and the
// first rows of the next neurons are under way before the last rows of these are added, and so are those of the block's
// next unit. Sums and their order are those of active_neurons.cuh.
#pragma once

#include "cuda/active_neurons.cuh"
#include "cuda/blocks.cuh"
#include "cuda/multiply.cuh"
#include "cuda/ring.cuh"
#include "cuda/tile_layout.h"

namespace adept::cuda {

constexpr int kSlotRows = 4;
constexpr int kSlots = 4;  // of a warp
static_assert(kPartsOfShare == kTeamWarps);

template <Format kFormat>
constexpr int kStoredStripRowBytes = stored_strip_row_bytes(kFormat);
template <Format kFormat>
constexpr int kRowScaleBytes = kStoredStripRowBytes<kFormat> - kStripRowBytes;
template <Format kFormat>
constexpr int kColsOfStrip = strip_cols(kFormat);

// What a warp copies of a row: the columns of its lanes, and all of the row's scales behind them.
template <Format kFormat, int kTokens>
constexpr int kPieceBytes = kLaneBytes<kFormat, kTokens> * kWarpSize;
template <Format kFormat, int kTokens>
constexpr int kSlotRowBytes = kPieceBytes<kFormat, kTokens> + kRowScaleBytes<kFormat>;
template <Format kFormat, int kTokens>
constexpr int kSlotBytes = kSlotRows * kSlotRowBytes<kFormat, kTokens>;
template <Format kFormat, int kTokens>
constexpr bool kTakesWholeRows = kPieceBytes<kFormat, kTokens> == kStripRowBytes;

// Shared memory of a warp beside its slots: two lists, and the sums that it hands over.
template <Format kFormat, int kTokens>
struct DownProjShared {
  float4 sums[kTokensHanded<kTokens> * kStripCols<kFormat, kTokens> / 4];
  ActiveNeurons<kTokens> lists[2];
};

// Units in the order in which they are handed out: strips of one share side by side.
template <Format kFormat, int kTokens>
__host__ __device__ constexpr int strips_of(int64_t cols) {
  return static_cast<int>((cols + kStripCols<kFormat, kTokens> - 1) / kStripCols<kFormat, kTokens>);
}

template <Format kFormat, int kTokens>
class DownProjUnits {
 public:
  __device__ DownProjUnits(const SparseDownProj& proj, int part_neurons)
      : strips_(strips_of<kFormat, kTokens>(proj.w.cols)), part_neurons_(part_neurons) {
    shares_ = static_cast<int>((proj.w.rows + kPartsOfShare * part_neurons - 1) / (kPartsOfShare * part_neurons));
  }

  __device__ int count() const { return strips_ * shares_; }
  __device__ int shares() const { return shares_; }
  __device__ Unit unit(int i) const { return {i / strips_, i % strips_ * kStripCols<kFormat, kTokens>}; }
  // The first neuron of this warp's part.
  __device__ int first_neuron(const Unit& unit) const {
    return (unit.share * kPartsOfShare + warp_index()) * part_neurons_;
  }
  __device__ int part_neurons() const { return part_neurons_; }

 private:
  int strips_, part_neurons_, shares_;
};

// A warp's way through its neurons, kListedNeurons at a time, unit after unit.
template <Format kFormat, int kTokens>
class NeuronCursor {
 public:
  __device__ NeuronCursor(const SparseDownProj& proj, const DownProjUnits<kFormat, kTokens>& units)
      : rows_(static_cast<int>(proj.w.rows)), units_(units), at_(static_cast<int>(blockIdx.x)) {}

  __device__ bool exists() const { return at_ < units_.count(); }
  __device__ Unit unit() const { return units_.unit(at_); }
  __device__ bool is_first() const { return offset_ == 0; }
  __device__ bool is_last() const { return offset_ + kListedNeurons >= units_.part_neurons(); }
  // Past `end` there are no neurons, or they are another part's.
  __device__ int first() const { return units_.first_neuron(unit()) + offset_; }
  __device__ int end() const { return min(units_.first_neuron(unit()) + units_.part_neurons(), rows_); }

  __device__ void go_on() {
    offset_ += kListedNeurons;
    if (offset_ < units_.part_neurons()) return;
    offset_ = 0;
    at_ += static_cast<int>(gridDim.x);
  }

 private:
  int rows_;
  const DownProjUnits<kFormat, kTokens>& units_;
  int at_;
  int offset_ = 0;
};

// What a unit reads of each row: of columns from `first` on, and how far behind them the row's scales are.
template <Format kFormat, int kTokens>
struct StripRows {
  const unsigned char* first = nullptr;
  int to_scales = 0;

  StripRows() = default;
  __device__ StripRows(const Matrix& w, const Unit& unit) {
    const int byte = unit.col % kColsOfStrip<kFormat> * Weights<kFormat>::kBits / 8;
    first = static_cast<const unsigned char*>(w.values) + byte +
            int64_t{unit.col / kColsOfStrip<kFormat>} * w.rows * kStoredStripRowBytes<kFormat>;
    to_scales = kStripRowBytes - byte;
  }

  __device__ __forceinline__ const unsigned char* at(uint32_t neuron) const {
    return address_of_row(first, neuron, kStoredStripRowBytes<kFormat>);
  }
};

// A warp's slots. All its lanes call everything.
template <Format kFormat, int kTokens>
class RowSlots {
 public:
  static constexpr int kBytes = kSlots * (kSlotBytes<kFormat, kTokens> + static_cast<int>(sizeof(Mbarrier)));
  static constexpr int kBytesOfTeam = kTeamWarps * kBytes;

  // `memory`: of the team, aligned to 128; the barriers are behind all slots.
  explicit __device__ RowSlots(unsigned char* memory)
      : slots_(memory + warp_index() * kSlots * kSlotBytes<kFormat, kTokens>),
        full_(reinterpret_cast<Mbarrier*>(memory + kTeamWarps * kSlots * kSlotBytes<kFormat, kTokens>) +
              warp_index() * kSlots) {}

  // By one thread, before the block meets.
  static __device__ void init(unsigned char* memory) {
    auto* const full = reinterpret_cast<Mbarrier*>(memory + kTeamWarps * kSlots * kSlotBytes<kFormat, kTokens>);
    for (int i = 0; i < kTeamWarps * kSlots; ++i) mbarrier_init(full + i, has_bulk_copies() ? 1 : kWarpSize);
  }

  // Copies the rows of `count` neurons, at most kSlotRows, to the next slot.
  __device__ __forceinline__ void fill(const StripRows<kFormat, kTokens>& rows, const uint32_t* neurons, int count) {
    constexpr int kRowBytes = kSlotRowBytes<kFormat, kTokens>, kPiece = kPieceBytes<kFormat, kTokens>;
    unsigned char* const slot = slots_ + filled_ * kSlotBytes<kFormat, kTokens>;
    Mbarrier* const full = full_ + filled_;
    filled_ = (filled_ + 1) % unsigned{kSlots};
    if (has_bulk_copies()) {
      constexpr bool kWhole = kTakesWholeRows<kFormat, kTokens>;
      const auto bytes = static_cast<uint32_t>(count * kRowBytes);
      if (lane_index() == 0) mbarrier_arrive_expecting(full, bytes);
      __syncwarp();
      const bool is_run = kWhole && neurons[count - 1] - neurons[0] == static_cast<uint32_t>(count - 1);
      if (lane_index() >= (is_run ? 1 : count)) return;
      unsigned char* const to = slot + lane_index() * kRowBytes;
      const unsigned char* const from = rows.at(neurons[lane_index()]);
      copy_bulk(to, from, is_run ? bytes : kWhole ? kRowBytes : kPiece, full);
      if constexpr (kRowScaleBytes<kFormat> != 0 && !kWhole)
        copy_bulk(to + kPiece, from + rows.to_scales, kRowScaleBytes<kFormat>, full);
    } else {
      for (int i = 0; i < count; ++i) {
        unsigned char* const to = slot + i * kRowBytes;
        const unsigned char* const from = rows.at(neurons[i]);
        const int at = lane_index() * 16;
        if (at < kPiece) copy_async(to + at, from + at);
        if (at < kRowScaleBytes<kFormat>) copy_async(to + kPiece + at, from + rows.to_scales + at);
      }
      mbarrier_arrive_after_copies(full);
    }
  }

  // The oldest slot, once its rows are there.
  __device__ __forceinline__ const unsigned char* wait() const {
    mbarrier_wait(full_ + read_, parity_);
    return slots_ + read_ * kSlotBytes<kFormat, kTokens>;
  }

  // The warp has read the slot, which may be filled again.
  __device__ __forceinline__ void leave() {
    __syncwarp();
    if (++read_ < kSlots) return;
    read_ = 0;
    parity_ ^= 1;
  }

 private:
  unsigned char* slots_;
  Mbarrier* full_;
  unsigned filled_ = 0;
  int read_ = 0;
  uint32_t parity_ = 0;
};

// A lane's weights of a row in a slot, and in 4 bits their scale.
template <Format kFormat, int kTokens>
__device__ __forceinline__ WeightsOfRow row_in_slot(const unsigned char* row, int col) {
  const unsigned char* const from = row + lane_index() * kLaneBytes<kFormat, kTokens>;
  WeightsOfRow to = {};
  if constexpr (kLaneBytes<kFormat, kTokens> == 16) {
    to.values = *reinterpret_cast<const uint4*>(from);
  } else if constexpr (kLaneBytes<kFormat, kTokens> == 8) {
    const uint2 values = *reinterpret_cast<const uint2*>(from);
    to.values.x = values.x, to.values.y = values.y;
  } else {
    to.values.x = *reinterpret_cast<const uint32_t*>(from);
  }
  if constexpr (kGroup<kFormat> != 0) {
    const int in_strip = col % kColsOfStrip<kFormat> + lane_index() * kLaneCols<kFormat, kTokens>;
    to.scale = reinterpret_cast<const uint16_t*>(row + kPieceBytes<kFormat, kTokens>)[in_strip / kGroup<kFormat>];
  }
  return to;
}

// Which of a warp's two lists has the active ones of some neurons, for which unit.
struct Batch {
  int list;
  Unit unit;
  int count;
};

// Fills a warp's slots with the rows of one batch after the other, of which it has two at most.
template <Format kFormat, int kTokens>
class RowsAhead {
 public:
  __device__ RowsAhead(const SparseDownProj& proj, RowSlots<kFormat, kTokens>& slots) : w_(proj.w), slots_(slots) {}

  // The batch before the one before this has been read.
  __device__ __forceinline__ void add(const uint32_t* neurons, const Batch& batch) {
    next_ = {neurons, {w_, batch.unit}, batch.count};
    while (free_ > 0 && fill()) continue;
  }

  // The oldest slot has been read.
  __device__ __forceinline__ void go_on() {
    ++free_;
    fill();
  }

 private:
  struct Source {
    const uint32_t* neurons = nullptr;
    StripRows<kFormat, kTokens> rows;
    int left = 0;
  };

  __device__ __forceinline__ bool fill() {
    if (now_.left <= 0) {
      now_ = next_;
      next_.left = 0;
      if (now_.left <= 0) return false;
    }
    slots_.fill(now_.rows, now_.neurons, min(kSlotRows, now_.left));
    now_.neurons += kSlotRows;
    now_.left -= kSlotRows;
    --free_;
    return true;
  }

  const Matrix& w_;
  RowSlots<kFormat, kTokens>& slots_;
  Source now_, next_;
  int free_ = kSlots;
};

// Multiplies the block's units; `finish(unit)` is called by all threads after a unit's sum is in `partials`. Returns
// the neurons of this warp's parts that were active in units of the first strip.
template <Format kFormat, int kTokens, class Finish>
__device__ int multiply_units(const SparseDownProj& proj, int part_neurons, DownProjShared<kFormat, kTokens>* shared,
                              RowSlots<kFormat, kTokens>& slots, float* partials, Finish finish) {
  using Team = Consumers;
  constexpr int kStride = sizeof(DownProjShared<kFormat, kTokens>) / sizeof(float4);
  const int64_t slot = proj.slots != nullptr && lane_index() < proj.tokens ? proj.slots[lane_index()] : 0;
  DownProjShared<kFormat, kTokens>& mine = shared[warp_index()];
  const DownProjUnits<kFormat, kTokens> units(proj, part_neurons);
  NeuronCursor<kFormat, kTokens> now(proj, units), ahead(proj, units);
  RowsAhead<kFormat, kTokens> rows_ahead(proj, slots);
  const auto list_next = [&](int which) {
    ActiveNeurons<kTokens>& list = mine.lists[which];
    __syncwarp();  // the list may still be being read
    const Batch batch = {which, ahead.unit(), list_neurons(proj, ahead.first(), ahead.end(), slot, list)};
    ahead.go_on();
    rows_ahead.add(list.neurons, batch);
    return batch;
  };

  if (!now.exists()) return 0;
  int active = 0;
  Batch batch = list_next(0), next = {};
  float sums[kTokens][kLaneCols<kFormat, kTokens>] = {};
  for (int which = 1; now.exists(); which ^= 1, now.go_on()) {
    if (ahead.exists()) next = list_next(which);
    if (batch.unit.col == 0) active += batch.count;
    const ActiveNeurons<kTokens>& list = mine.lists[batch.list];
    for (int at = 0; at < batch.count; at += kSlotRows) {
      const unsigned char* const rows = slots.wait();
      const auto add = [&](int i) {
        const WeightsOfRow row =
            row_in_slot<kFormat, kTokens>(rows + i * kSlotRowBytes<kFormat, kTokens>, batch.unit.col);
        add_row<kFormat, kTokens>(row, list.activations + (at + i) * list.kStride, active_tokens(list, at + i), sums);
      };
      if (at + kSlotRows <= batch.count) {
#pragma unroll
        for (int i = 0; i < kSlotRows; ++i) add(i);
      } else {
#pragma unroll 1
        for (int i = 0; at + i < batch.count; ++i) add(i);
      }
      slots.leave();
      rows_ahead.go_on();
    }
    if (now.is_last()) {
      Team::sync();  // the sums before may still be being read
      add_parts<kFormat, kTokens, Team>(proj, batch.unit, sums, shared->sums, kStride, true, partials);
      finish(batch.unit);
#pragma unroll
      for (int token = 0; token < kTokens; ++token)
#pragma unroll
        for (int c = 0; c < kLaneCols<kFormat, kTokens>; ++c) sums[token][c] = 0;
    }
    batch = next;
  }
  return active;
}

// The sums of a unit's columns, by warps, in shared memory: of two times 128 columns.
using HandedShares = float4[2][kAddWarps][kWarpSize];

// out = x + bias + the sum of all shares of some columns, in the order of add_partials. The whole team calls it.
template <Format kFormat, int kTokens, class Team>
__device__ void add_shares(const SparseDownProj& proj, int first_col, int shares, const float* partials,
                           HandedShares& handed) {
  constexpr int kGroups = kStripCols<kFormat, kTokens> / (4 * kWarpSize);
  const int tokens = static_cast<int>(proj.tokens), hidden = static_cast<int>(proj.w.cols);
  for (int round = 0; round < tokens * kGroups; ++round) {
    const int token = round / kGroups, col = first_col + (round % kGroups * kWarpSize + lane_index()) * 4;
    float4(&of_warps)[kAddWarps][kWarpSize] = handed[round % 2];
    of_warps[warp_index()][lane_index()] = sum_of_shares(proj, partials, shares, token, col);
    Team::sync();
    // A different warp each round; the others continue.
    if (warp_index() != round % kAddWarps || col >= hidden) continue;
    float4 sum = of_warps[0][lane_index()], scale = {1, 1, 1, 1};
#pragma unroll
    for (int warp = 1; warp < kAddWarps; ++warp) add(sum, of_warps[warp][lane_index()]);
    if constexpr (Weights<kFormat>::kBits == 8) scale = four(static_cast<const float*>(proj.w.scales) + col);
    const int64_t at = int64_t{token} * hidden + col;
    *reinterpret_cast<float4*>(proj.out + at) = with_residual(four(proj.x + at), sum, scale, four(proj.bias + col));
  }
}

template <Format kFormat, int kTokens>
constexpr int kDownWorkBytes =
    kTeamWarps * static_cast<int>(sizeof(DownProjShared<kFormat, kTokens>)) + static_cast<int>(sizeof(HandedShares));

// The block's units of the down-projection; the last block of a strip adds its shares, if there are counters. `work`:
// kDownWorkBytes of shared memory.
template <Format kFormat, int kTokens>
__device__ __forceinline__ void run_down(const SparseDownProj& proj, int part_neurons, float* partials,
                                         unsigned char* work, RowSlots<kFormat, kTokens>& slots, uint64_t* seen) {
  auto* const shared = reinterpret_cast<DownProjShared<kFormat, kTokens>*>(work);
  auto& handed = *reinterpret_cast<HandedShares*>(shared + kTeamWarps);
  const int shares = DownProjUnits<kFormat, kTokens>(proj, part_neurons).shares();
  const auto finish = [&](const Unit& unit) {
    if (proj.strip_counters == nullptr) return;
    if (is_last_of<Consumers>(proj.strip_counters + unit.col / kStripCols<kFormat, kTokens>, shares, seen))
      add_shares<kFormat, kTokens, Consumers>(proj, unit.col, shares, partials, handed);
  };
  const int active = multiply_units<kFormat, kTokens>(proj, part_neurons, shared, slots, partials, finish);
  if (proj.counts == nullptr || lane_index() != 0) return;
  // Unsigned, so that past 2^63 - 1 a sum wraps around as torch's does: the host cannot check these values.
  auto* const counts = reinterpret_cast<unsigned long long*>(proj.counts);
  if (active != 0) atomicAdd(counts, static_cast<unsigned long long>(active));
  if (blockIdx.x == 0 && warp_index() == 0) atomicAdd(counts + 1, static_cast<unsigned long long>(proj.w.rows));
}

// The down-projection alone. Without a warp for a ring, its threads have registers for 16 tokens.
template <Format kFormat, int kTokens>
__global__ void __launch_bounds__(kTeamThreads, 1)
    multiply_strips(const SparseDownProj proj, int part_neurons, float* partials, int slots_bytes) {
  __shared__ uint64_t seen;
  unsigned char* const memory = dynamic_shared<unsigned char>();
  if (threadIdx.x == 0) {
    RowSlots<kFormat, kTokens>::init(memory);
    mbarrier_fence_init();
  }
  __syncthreads();
  pdl_launch_dependents();
  pdl_wait();
  RowSlots<kFormat, kTokens> slots(memory);
  run_down<kFormat, kTokens>(proj, part_neurons, partials, memory + slots_bytes, slots, &seen);
}

}  // namespace adept::cuda
