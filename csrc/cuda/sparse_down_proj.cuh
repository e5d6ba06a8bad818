// out = x + bias + activations · W for up to 16 tokens, the second half of mlp, in float32. Only rows of W whose
// activation is not 0 for some token are read, and a token adds only those of its own.
//
// Layout: W is [intermediate, hidden], row-major, so a neuron's weights are one row. Neurons are divided into parts and
// 8 parts into a share, by their number alone (workspace.h). A block takes a share and a strip of columns, a warp one
// part at a time, of whose active neurons it makes a list. A lane has 16 bytes of a row at one token, and 8 columns at
// 16 tokens, whose sums fill its registers.
//
// Order: a token's sum of a part adds that token's active neurons one by one, each in one rounding. A block adds its
// parts in order and writes the sum to the workspace; add_partials adds the shares in one order. So a token's result
// depends neither on the other tokens and their zeros nor on the device.
//
// Lower bound at the 8B's shapes in 16 bits and 3.0 TB/s: 134 MB, 45 us, times the fraction of active neurons; half in
// 8 bits, a quarter in 4. Limit at one token: memory bandwidth. A multiprocessor has 128 kB in flight in 16 bits, 64 kB
// in 8 bits, 32 kB in 4 bits. 1 kB takes 53 instructions of a warp in float16 (counted in the code for 9.0), 61 in
// bfloat16, 111 in fp8, 128 in int8, 234 in int4; a multiprocessor can issue 270 in that time on an H100, 200 on an
// H200, so int4 is limited by both. Limit at 16 tokens: multiply-adds. If all neurons are active for all tokens, 1 kB
// takes 338, 346, 699, 716 and 1727 instructions, and all of W 42 to 54 us at 1.98 GHz on 132 multiprocessors; about
// half if a tenth of the neurons is active for each token. If all neurons are active, a block reads 256 kB of W at one
// token, beside it 2 kB of activations, and writes 1 kB of sums in 16 bits, 2 in 8 bits, 4 in 4 bits.
//
// Rounds: up to 2 tokens 132 multiprocessors have 528 places for 512 blocks in 16 bits, 264 for 256 in 8 bits, 132 for
// 128 in 4 bits; at 16 tokens 264 for 512.
#pragma once

#include "cuda/active_neurons.cuh"

namespace adept::cuda {

// At 16 tokens a multiprocessor has registers for 8 warps. Two blocks of 4, each of which takes the share's parts in
// two rounds, multiply while the other one waits for its first loads.
template <int kTokens>
constexpr int kDownProjWarps = kTokens <= 8 ? kPartsOfShare : kPartsOfShare / 2;
template <int kTokens>
constexpr int kDownProjThreads = kDownProjWarps<kTokens> * kWarpSize;
// Blocks of a multiprocessor, and the rows that a warp has in flight, as registers allow. The 8B has no more than two
// blocks for each multiprocessor in 8 bits, and one in 4 bits, up to 4 and 2 tokens.
template <Format kFormat, int kTokens>
constexpr int kDownProjBlocks = kTokens > 2 || Weights<kFormat>::kBits == 8 ? 2
                                : Weights<kFormat>::kBits == 4              ? 1
                                                                            : 4;
template <Format kFormat, int kTokens>
constexpr int kRowsInFlight =
    (Weights<kFormat>::kBits == 16 && (kTokens == 2 || kTokens == 8)) || (Weights<kFormat>::kBits == 8 && kTokens == 4)
        ? 6
        : 8;

// Shared memory of a warp: the list; after that has been read, the sums.
template <Format kFormat, int kTokens>
union SharedOfWarp {
  ActiveNeurons<kTokens> list;
  float4 sums[kTokensHanded<kTokens> * kStripCols<kFormat, kTokens> / 4];
};

// The part of W that a lane reads: the columns from `col` on. Past the end it reads others, whose sums nobody needs.
template <Format kFormat, int kTokens>
class LaneColumns {
 public:
  __device__ LaneColumns(const Matrix& w, int col) {
    const Rows<kFormat> rows(w);
    if (col >= rows.stored_cols) col = 0;
    values_ = rows.values + col * Weights<kFormat>::kBits / 8;
    row_bytes_ = static_cast<uint32_t>(rows.row_bytes);
    if constexpr (kGroup<kFormat> != 0) {
      scales_ = static_cast<const uint16_t*>(w.scales) + col / kGroup<kFormat>;
      row_scale_bytes_ = static_cast<uint32_t>(rows.stored_cols / kGroup<kFormat> * sizeof(uint16_t));
    }
  }

  __device__ __forceinline__ void fetch(uint32_t neuron, WeightsOfRow& to) const {
    const uint8_t* const from = address_of_row(values_, neuron, row_bytes_);
    if constexpr (kLaneBytes<kFormat, kTokens> == 16) {
      to.values = load_once(from);
    } else if constexpr (kLaneBytes<kFormat, kTokens> == 8) {
      const uint2 values = load_once_8(from);
      to.values.x = values.x, to.values.y = values.y;
    } else {
      to.values.x = load_once_4(from);
    }
    if constexpr (kGroup<kFormat> != 0) to.scale = __ldg(address_of_row(scales_, neuron, row_scale_bytes_));
  }

 private:
  const uint8_t* values_;
  const uint16_t* scales_;
  uint32_t row_bytes_, row_scale_bytes_;
};

template <Format kFormat, int kTokens>
__global__ void __launch_bounds__(kDownProjThreads<kTokens>, kDownProjBlocks<kFormat, kTokens>)
    multiply_active_rows(const SparseDownProj proj, int part_neurons, float* partials) {
  constexpr int kRows = kRowsInFlight<kFormat, kTokens>, kWarps = kDownProjWarps<kTokens>;
  const int warp = uniform(warp_index());
  SharedOfWarp<kFormat, kTokens>* const shared = dynamic_shared<SharedOfWarp<kFormat, kTokens>>();
  ActiveNeurons<kTokens>& list = shared[warp].list;
  const int strip = static_cast<int>(blockIdx.x) * kStripCols<kFormat, kTokens>;
  const LaneColumns<kFormat, kTokens> columns(proj.w, strip + lane_index() * kLaneCols<kFormat, kTokens>);

  pdl_wait();
  pdl_launch_dependents();
  const int64_t slot = proj.slots != nullptr && lane_index() < proj.tokens ? proj.slots[lane_index()] : 0;
  int active = 0;
  for (int first_part = 0; first_part < kPartsOfShare; first_part += kWarps) {
    if (first_part != 0) __syncthreads();  // sums may still be being read
    const int64_t begin = (int64_t{blockIdx.y} * kPartsOfShare + first_part + warp) * part_neurons;
    const int64_t end = min(begin + part_neurons, proj.w.rows);
    float sums[kTokens][kLaneCols<kFormat, kTokens>] = {};
    for (int64_t first = begin; first < end; first += kListedNeurons) {
      __syncwarp();  // the list may still be being read
      const int count = list_neurons(proj, static_cast<int>(first), static_cast<int>(end), slot, list);
      active += count;
      WeightsOfRow rows[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        if (i < count) columns.fetch(list.neurons[i], rows[i]);
      for (int at = 0; at < count; at += kRows)
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          if (at + i >= count) break;
          add_row<kFormat, kTokens>(rows[i], list.activations + (at + i) * list.kStride, active_tokens(list, at + i),
                                    sums);
          if (at + i + kRows < count) columns.fetch(list.neurons[at + i + kRows], rows[i]);
        }
    }
    constexpr int kStride = sizeof(SharedOfWarp<kFormat, kTokens>) / sizeof(float4);
    add_parts<kFormat, kTokens, FirstThreads<kDownProjThreads<kTokens>>>(
        proj, {static_cast<int>(blockIdx.y), strip}, sums, shared->sums, kStride, first_part == 0, partials);
  }

  if (proj.counts == nullptr || blockIdx.x != 0 || lane_index() != 0) return;
  // Unsigned, so that past 2^63 - 1 a sum wraps around as torch's does: the host cannot check these values.
  auto* const counts = reinterpret_cast<unsigned long long*>(proj.counts);
  if (active != 0) atomicAdd(counts, static_cast<unsigned long long>(active));
  if (blockIdx.y == 0 && warp_index() == 0) atomicAdd(counts + 1, static_cast<unsigned long long>(proj.w.rows));
}

}  // namespace adept::cuda
