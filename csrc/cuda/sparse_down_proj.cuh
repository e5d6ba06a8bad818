// out = x + bias + activations · W for up to 16 tokens, the second half of mlp. Only rows of W whose activation is not
// 0 for some token are read.
//
// Layout: W is [intermediate, hidden], row-major, so a neuron's weights are one row. A block takes a strip of 512
// columns (1 kB of a row in 16 bits) and a share of the list of active neurons, which it builds from their bits
// (compact_nonzeros.cuh); shares have equal numbers of neurons. Its partial sums go to the workspace, and add_partials
// adds them in a fixed order. Tensor cores multiply Wᵀ with the activations: of 16 rows, lane 4 g + t loads 16 bytes of
// each of rows 4 t to 4 t + 3, the g-th of 8 neighbouring pieces (128 bytes of a row), and joins pairs of rows column
// by column. Weights and activations have the same order of neurons and columns, so the product is right in any order.
//
// Lower bound at the 8B's shapes in 16 bits and 3.0 TB/s: 134 MB, 45 us, times the fraction of active neurons. Limit:
// memory bandwidth. 16 warps a multiprocessor have 2 steps of 4 loads of 512 bytes in flight, 64 kB. A step is 2 kB in
// about 95 instructions of a warp. If all neurons are active, a block reads 1 MB of W. For one token it also reads 2 kB
// of bits, 4 kB of the tiles' maxima and 4 kB of activations while the first weights are loading, and writes 2 kB of
// sums, together 1 percent.
#pragma once

#include "cuda/compact_nonzeros.cuh"
#include "cuda/formats.cuh"
#include "cuda/linear.h"
#include "cuda/sparse_down_proj.h"
#include "cuda/workspace.h"

namespace adept::cuda {

// In 4 bits a lane has four times the columns, and their sums need the registers of two threads.
template <Format kFormat>
constexpr int kDownProjWarps = Weights<kFormat>::kBits == 4 ? 8 : 16;
template <Format kFormat>
constexpr int kDownProjThreads = kDownProjWarps<kFormat> * kWarpSize;
template <Format kFormat, int kTokenTiles>
constexpr int kDownProjSteps = Weights<kFormat>::kBits != 4 ? 2
                               : kTokenTiles == 1           ? 4
                                                            : 3;  // in flight
constexpr int kListedNeurons = 1024;                              // at once
constexpr int kNeuronsOfStep = 16;
constexpr int kTokensAcross = 8;  // as many as one product of the tensor cores has

// The stride between two tokens' activations in 16 bits: 32 bytes of padding put 4 tokens in different banks.
constexpr int kActivationsStride = kListedNeurons + 16;

// Warps that divide a strip's columns; the block's other warps take other steps of the list.
template <Format kFormat>
constexpr int kWarpsAcross = kStripCols / (8 * kPerLoad<kFormat>);
template <Format kFormat>
constexpr int kWarpsDeep = kDownProjWarps<kFormat> / kWarpsAcross<kFormat>;

// Products for one lane's columns, each of two columns.
template <Format kFormat>
constexpr int kColumnPairs = kPerLoad<kFormat> / 2;

// Shared memory: the list and the activations; after those have been read, the sums that warps exchange.
constexpr size_t list_bytes(int64_t tokens) {
  return kListedNeurons * sizeof(uint32_t) + static_cast<size_t>(tokens) * kActivationsStride * sizeof(uint16_t);
}
template <Format kFormat>
constexpr size_t handed_bytes(int token_tiles) {
  return kWarpsDeep<kFormat> / 2 * kWarpsAcross<kFormat> * kColumnPairs<kFormat> * token_tiles * kWarpSize *
         sizeof(float4);
}

// This lane's columns of the rows of four neurons.
template <Format kFormat>
struct DownProjStep {
  uint4 rows[4];
  // In groups of 32 the scale of each row. In groups of 128 four lanes share them: lane 4 g + t has row g % 4's.
  uint32_t scales[kGroup<kFormat> == 32 ? 4 : 1];
};

// The part of W that a lane reads: the columns from `col` on.
template <Format kFormat>
class DownProjColumns {
 public:
  __device__ DownProjColumns(const Matrix& w, int col)
      : rows_(w), scales_(static_cast<const uint16_t*>(w.scales)), col_(col) {}

  // The rows of neurons[0] to neurons[count - 1]; zeros for the others, and for columns past the end.
  __device__ void fetch(const uint32_t* neurons, int count, DownProjStep<kFormat>& to) const {
    if (col_ >= rows_.stored_cols) count = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to.rows[i] = {0, 0, 0, 0};
      if (i >= count) continue;
      const int neuron = static_cast<int>(neurons[i]);
      to.rows[i] = rows_.load(neuron, col_);
    }
    if constexpr (kGroup<kFormat> != 0) {
      // Not used here: that would wait for the load.
      constexpr int kScales = sizeof(to.scales) / sizeof(to.scales[0]);
#pragma unroll
      for (int k = 0; k < kScales; ++k) {
        const int i = kScales == 1 ? lane_index() / 4 % 4 : k;
        to.scales[k] = 0;
        if (i < count)
          to.scales[k] = __ldg(scales_ + static_cast<int>(neurons[i]) * (rows_.stored_cols / kGroup<kFormat>)+col_ /
                                             kGroup<kFormat>);
      }
    }
  }

 private:
  const Rows<kFormat> rows_;
  const uint16_t* scales_;
  const int col_;
};

// The scales of rows 2 k and 2 k + 1, in float16.
template <Format kFormat>
__device__ __forceinline__ uint32_t scales_of(const DownProjStep<kFormat>& step, int k) {
  if constexpr (kGroup<kFormat> == 0) return 0;
  if constexpr (kGroup<kFormat> == 32) return __byte_perm(step.scales[2 * k], step.scales[2 * k + 1], 0x5410);
  const int lane = lane_index() / 16 * 16 + lane_index() % 4 + 8 * k;
  const uint32_t first = __shfl_sync(kWholeWarp, step.scales[0], lane);
  return __byte_perm(first, __shfl_sync(kWholeWarp, step.scales[0], lane + 4), 0x5410);
}

// Column i of rows 2 k and 2 k + 1.
template <Format kFormat>
__device__ __forceinline__ uint32_t column_of(const DownProjStep<kFormat>& step, int k, int i, uint32_t scales) {
  const uint32_t pair = Weights<kFormat>::across(step.rows[2 * k], step.rows[2 * k + 1], i);
  if constexpr (kGroup<kFormat> == 0) return pair;
  return scale_pair(pair, scales);
}

// sums += 16 neurons' rows · activations. `activations`: this lane's four, of a token of the first tile.
template <Format kFormat, int kTokenTiles>
__device__ __forceinline__ void add_step(const DownProjStep<kFormat>& step, const uint16_t* activations, int tokens,
                                         float (&sums)[kColumnPairs<kFormat>][kTokenTiles][4]) {
  uint32_t b[kTokenTiles][2] = {};
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    if (n * kTokensAcross + lane_index() / 4 >= tokens) continue;
    const uint2 four = *reinterpret_cast<const uint2*>(activations + n * kTokensAcross * kActivationsStride);
    b[n][0] = four.x, b[n][1] = four.y;
  }
  const uint32_t first = scales_of(step, 0), second = scales_of(step, 1);
#pragma unroll
  for (int pair = 0; pair < kColumnPairs<kFormat>; ++pair) {
    const uint32_t a[4] = {column_of(step, 0, 2 * pair, first), column_of(step, 0, 2 * pair + 1, first),
                           column_of(step, 1, 2 * pair, second), column_of(step, 1, 2 * pair + 1, second)};
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) Element<kFormat>::multiply_add(sums[pair][n], a, b[n]);
  }
}

// Each token's activations of the listed neurons, scaled and rounded, and zeros up to a whole step.
template <Format kFormat>
__device__ __forceinline__ void gather_activations(const SparseDownProj& proj, const uint32_t* list, int count,
                                                   const float* scale, uint16_t* activations) {
  constexpr int kAtOnce = 8;  // loads in flight
  const int whole = (count + kNeuronsOfStep - 1) / kNeuronsOfStep * kNeuronsOfStep;
  const int tokens = static_cast<int>(proj.tokens);
  for (int i = threadIdx.x; i < whole; i += kDownProjThreads<kFormat>) {
    const float* const of_neuron = proj.activations + (i < count ? list[i] : 0);
    for (int first = 0; first < tokens; first += kAtOnce) {
      float values[kAtOnce] = {};
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (i < count && first + k < tokens) values[k] = of_neuron[(first + k) * proj.w.rows];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (first + k < tokens)
          activations[(first + k) * kActivationsStride + i] =
              static_cast<uint16_t>(Element<kFormat>::pack(values[k] * scale[first + k], 0));
    }
  }
}

// One warp for each token finds the power of two that scales its activations to just below float16's maximum.
template <Format kFormat>
__device__ __forceinline__ void find_scales(const SparseDownProj& proj, float* scale, float* unscale) {
  const int tiles = tiles_of(proj.w.rows);
  for (int token = warp_index(); token < proj.tokens; token += kDownProjWarps<kFormat>) {
    PowerOfTwo power = {1, 1};
    if constexpr (Element<kFormat>::kNarrow) {
      float largest = 0;
#pragma unroll 8
      for (int i = lane_index(); i < tiles; i += kWarpSize) largest = fmaxf(largest, proj.largest[token * tiles + i]);
      power = scale_to_float16(warp_max(largest));
    }
    if (lane_index() == 0) scale[token] = power.value, unscale[token] = power.inverse;
  }
}

// The warps of depth 0 get the sums of all depths, added in a fixed order.
template <Format kFormat, int kTokenTiles>
__device__ __forceinline__ void gather_sums(float (&sums)[kColumnPairs<kFormat>][kTokenTiles][4], float4* handed) {
  constexpr int kAcross = kWarpsAcross<kFormat>, kOfWarp = kColumnPairs<kFormat> * kTokenTiles * kWarpSize;
  const int depth = warp_index() / kAcross, across = warp_index() % kAcross;
  float* flat = &sums[0][0][0];
#pragma unroll
  for (int half = kWarpsDeep<kFormat> / 2; half > 0; half /= 2) {
    float4* const of_pair = handed + ((depth % half) * kAcross + across) * kOfWarp + lane_index();
    __syncthreads();
    if (depth >= half && depth < 2 * half)
#pragma unroll
      for (int i = 0; i < kColumnPairs<kFormat> * kTokenTiles; ++i)
        of_pair[i * kWarpSize] = {flat[4 * i], flat[4 * i + 1], flat[4 * i + 2], flat[4 * i + 3]};
    __syncthreads();
    if (depth < half)
#pragma unroll
      for (int i = 0; i < kColumnPairs<kFormat> * kTokenTiles; ++i) {
        const float4 other = of_pair[i * kWarpSize];
        flat[4 * i] += other.x, flat[4 * i + 1] += other.y, flat[4 * i + 2] += other.z, flat[4 * i + 3] += other.w;
      }
  }
}

// `partials`: [shares, tokens, hidden], where gridDim.y is the number of shares.
template <Format kFormat, int kTokenTiles>
__global__ void __launch_bounds__(kDownProjThreads<kFormat>, 1)
    multiply_active_rows(const SparseDownProj proj, float* partials) {
  using Active = CompactNonzeros<kDownProjThreads<kFormat>>;
  constexpr int kAcross = kWarpsAcross<kFormat>, kDeep = kWarpsDeep<kFormat>, kPairs = kColumnPairs<kFormat>;
  constexpr int kSteps = kDownProjSteps<kFormat, kTokenTiles>;
  __shared__ typename Active::Shared of_list;
  __shared__ float scale[kTokenTiles * kTokensAcross], unscale[kTokenTiles * kTokensAcross];
  uint32_t* const list = dynamic_shared<uint32_t>();
  uint16_t* const activations = reinterpret_cast<uint16_t*>(list + kListedNeurons);
  const int tokens = static_cast<int>(proj.tokens), hidden = static_cast<int>(proj.w.cols);
  const int depth = warp_index() / kAcross, g = lane_index() / 4, t = lane_index() % 4;
  const int col = static_cast<int>(blockIdx.x) * kStripCols + (warp_index() % kAcross * 8 + g) * kPerLoad<kFormat>;
  const DownProjColumns<kFormat> columns(proj.w, col);

  pdl_wait();
  pdl_launch_dependents();
  find_scales<kFormat>(proj, scale, unscale);
  Active active(proj.active, static_cast<int>((proj.w.rows + 31) / 32), of_list);
  const int64_t count = active.count(), shares = gridDim.y, share = blockIdx.y;
  const int end = static_cast<int>(count * (share + 1) / shares);
  float sums[kPairs][kTokenTiles][4] = {};
  for (int begin = static_cast<int>(count * share / shares); begin < end; begin += kListedNeurons) {
    const int listed = min(end - begin, kListedNeurons);
    active.list(begin, begin + listed, list);
    __syncthreads();
    DownProjStep<kFormat> steps[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int first = (depth + i * kDeep) * kNeuronsOfStep + 4 * t;
      columns.fetch(list + first, listed - first, steps[i]);
    }
    gather_activations<kFormat>(proj, list, listed, scale, activations);
    __syncthreads();
    for (int at = depth * kNeuronsOfStep; at < listed; at += kSteps * kDeep * kNeuronsOfStep) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int first = at + i * kDeep * kNeuronsOfStep;
        if (first >= listed) break;
        add_step<kFormat, kTokenTiles>(steps[i], activations + g * kActivationsStride + first + 4 * t, tokens, sums);
        const int next = first + kSteps * kDeep * kNeuronsOfStep + 4 * t;
        columns.fetch(list + next, listed - next, steps[i]);
      }
    }
  }

  gather_sums<kFormat, kTokenTiles>(sums, dynamic_shared<float4>());
  if (depth != 0) return;
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = n * kTokensAcross + 2 * t + i;
      if (token >= tokens) continue;
      float* const to = partials + (share * tokens + token) * hidden + col;
#pragma unroll
      for (int pair = 0; pair < kPairs; pair += 2)
        if (col + 2 * pair < hidden)
          *reinterpret_cast<float4*>(to + 2 * pair) = {
              sums[pair][n][i] * unscale[token], sums[pair][n][2 + i] * unscale[token],
              sums[pair + 1][n][i] * unscale[token], sums[pair + 1][n][2 + i] * unscale[token]};
    }
}

}  // namespace adept::cuda
