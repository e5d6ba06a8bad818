// What the kernels of the sparse down-projection share: a warp's list of active neurons, the product of one row of W
// with the activations of up to 16 tokens, and the sum of a share's parts.
//
// Neurons are divided into parts and 8 parts into a share, by their number alone (workspace.h). A token's sum of a part
// adds that token's active neurons one by one, each in one rounding; a block adds the parts in order. So a token's
// result depends neither on the other tokens and their zeros nor on the device.
#pragma once

#include "cuda/formats.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sparse_down_proj.h"
#include "cuda/workspace.h"

namespace adept::cuda {

constexpr int kListedNeurons = 64;  // that a warp looks at at once

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }

// The first lane's value: the compiler then knows that a branch on it is the whole warp's.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(kWholeWarp, value, 0); }

// The columns of a lane: as many as 16 bytes have, if their sums leave registers for the rows in flight.
template <Format kFormat, int kTokens>
constexpr int kLaneCols = least(kPerLoad<kFormat>, kTokens <= 8 ? 64 / kTokens : 8);
template <Format kFormat, int kTokens>
constexpr int kLaneBytes = kLaneCols<kFormat, kTokens> * Weights<kFormat>::kBits / 8;
template <Format kFormat, int kTokens>
constexpr int kStripCols = kLaneCols<kFormat, kTokens> * kWarpSize;

// A warp's active neurons, in order, and each token's activations of them. Padding puts lanes that write eight or more
// activations each in different banks.
template <int kTokens>
struct alignas(16) ActiveNeurons {
  static constexpr int kStride = kTokens < 8 ? kTokens : kTokens + 4;
  uint32_t neurons[kListedNeurons];
  int tokens[kListedNeurons];  // a bit for each that the neuron is active for
  float activations[kListedNeurons * kStride];
};

// A bit for each token that the i-th neuron of the list is active for.
template <int kTokens>
__device__ __forceinline__ int active_tokens(const ActiveNeurons<kTokens>& list, int i) {
  return kTokens == 1 ? 1 : uniform(list.tokens[i]);
}

// Tokens whose sums go through shared memory at once.
template <int kTokens>
constexpr int kTokensHanded = least(kTokens, 4);

// Lists the active ones of the neurons from `first` to `end` (excluded), at most kListedNeurons. `slot`: of the token
// with the lane's number; tokens without a slot activate none.
template <int kTokens>
__device__ __forceinline__ int list_neurons(const SparseDownProj& proj, int first, int end, int64_t slot,
                                            ActiveNeurons<kTokens>& list) {
  constexpr int kWords = kListedNeurons / kWarpSize;
  const int tokens = static_cast<int>(proj.tokens);
  float activations[kWords][kTokens] = {};
#pragma unroll
  for (int word = 0; word < kWords; ++word)
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const int neuron = first + word * kWarpSize + lane_index();
      if (neuron < end && token < tokens) activations[word][token] = proj.activations[token * proj.w.rows + neuron];
    }
  const unsigned present = __ballot_sync(kWholeWarp, slot >= 0);
  int count = 0;
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    int of = 0;
#pragma unroll
    for (int token = 0; token < kTokens; ++token)
      if (activations[word][token] != 0) of |= 1 << token;  // a NaN is active
    of &= static_cast<int>(present);
    const unsigned active = __ballot_sync(kWholeWarp, of != 0);
    const int at = count + __popc(active & ((1u << lane_index()) - 1));
    count += __popc(active);
    if (of == 0) continue;
    list.tokens[at] = of;
    list.neurons[at] = static_cast<uint32_t>(first + word * kWarpSize + lane_index());
#pragma unroll
    for (int token = 0; token < kTokens; ++token)
      list.activations[at * list.kStride + token] = activations[word][token];
  }
  __syncwarp();
  return uniform(count);
}

// A lane's weights of one row, and in 4 bits their scale.
struct WeightsOfRow {
  uint4 values;
  uint16_t scale;
};

// sums += activations · a row. `active`: a bit for each token. What a token does not need is not added, or in 4 bits,
// whose weights are finite, added as 0: 0 times infinity is nothing. Four tokens that do not need the row are skipped.
template <Format kFormat, int kTokens>
__device__ __forceinline__ void add_row(const WeightsOfRow& row, const float* activations, int active,
                                        float (&sums)[kTokens][kLaneCols<kFormat, kTokens>]) {
  constexpr int kCols = kLaneCols<kFormat, kTokens>, kAtOnce = least(kTokens, 4);
  const float scale = kGroup<kFormat> == 0 ? 1 : held(__half2float(bits_as<__half>(row.scale)));
  float weights[kCols];
#pragma unroll
  for (int i = 0; i < kCols / 2; ++i) {
    const float2 pair = Element<kFormat>::unpack(Weights<kFormat>::along(row.values, i));
    weights[2 * i] = pair.x, weights[2 * i + 1] = pair.y;
  }
#pragma unroll
  for (int first = 0; first < kTokens; first += kAtOnce) {
    if (kTokens > kAtOnce && (active >> first & (1 << kAtOnce) - 1) == 0) continue;
    struct alignas(kAtOnce * sizeof(float)) Some {
      float of_token[kAtOnce];
    };
    const Some some = *reinterpret_cast<const Some*>(activations + first);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float activation = some.of_token[i];
      const bool is_active = kTokens == 1 || (active >> (first + i) & 1) != 0;
      if (kGroup<kFormat> != 0) activation = is_active ? activation * scale : 0;
      if (kGroup<kFormat> == 0 && !is_active) continue;
#pragma unroll
      for (int c = 0; c < kCols; ++c) sums[first + i][c] = __fmaf_rn(activation, weights[c], sums[first + i][c]);
    }
  }
}

// The columns from `col` on of a share of the neurons.
struct Unit {
  int share;
  int col;
};

// Adds the sums of a team's warps, which are those of the share's parts, in order. `partials`: [shares, tokens,
// hidden]. `shared`: each warp's, `stride` apart.
template <Format kFormat, int kTokens, class Team>
__device__ __forceinline__ void add_parts(const SparseDownProj& proj, const Unit& unit,
                                          const float (&sums)[kTokens][kLaneCols<kFormat, kTokens>], float4* shared,
                                          int stride, bool is_first, float* partials) {
  constexpr int kFours = kLaneCols<kFormat, kTokens> / 4, kFoursOfToken = kFours * kWarpSize;
  constexpr int kHanded = kTokensHanded<kTokens>;
  // So that neither lanes that write nor those that read neighbouring columns meet in a bank.
  const auto place = [](int lane, int i) { return i * kWarpSize + (lane + i * (8 / kFours)) % kWarpSize; };
  const int tokens = static_cast<int>(proj.tokens);
#pragma unroll
  for (int first = 0; first < kTokens; first += kHanded) {
    if (first >= tokens) break;
    if (first == 0)
      __syncwarp();  // a warp's sums are where its list was
    else
      Team::sync();
#pragma unroll
    for (int t = 0; t < kHanded; ++t)
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float (&of)[kLaneCols<kFormat, kTokens>] = sums[first + t];
        shared[warp_index() * stride + t * kFoursOfToken + place(lane_index(), i)] = {of[4 * i], of[4 * i + 1],
                                                                                      of[4 * i + 2], of[4 * i + 3]};
      }
    Team::sync();
    for (int at = threadIdx.x; at < kHanded * kFoursOfToken; at += Team::threads()) {
      const int token = first + at / kFoursOfToken, four = at % kFoursOfToken;
      const int col = unit.col + 4 * four;
      if (token >= tokens || col >= proj.w.cols) continue;
      const int from = at / kFoursOfToken * kFoursOfToken + place(four / kFours, four % kFours);
      float4& to = *reinterpret_cast<float4*>(partials + (int64_t{unit.share} * tokens + token) * proj.w.cols + col);
      float4 sum = {0, 0, 0, 0};
      if (!is_first) sum = to;
#pragma unroll
      for (int warp = 0; warp < Team::threads() / kWarpSize; ++warp) {
        const float4 part = shared[warp * stride + from];
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
      }
      to = sum;
    }
  }
}

constexpr int kAddWarps = 8;  // of a block that adds the shares
constexpr int kSharesOfWarp = kMaxParts / kPartsOfShare / kAddWarps;

__device__ __forceinline__ void add(float4& sum, const float4& more) {
  sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
}

__device__ __forceinline__ float4 four(const float* from) { return *reinterpret_cast<const float4*>(from); }

// The sum of the warp's four shares, in order, of four columns: all loads are in flight at once.
__device__ __forceinline__ float4 sum_of_shares(const SparseDownProj& proj, const float* partials, int shares,
                                                int64_t token, int64_t col) {
  float4 parts[kSharesOfWarp] = {}, sum = {};
#pragma unroll
  for (int i = 0; i < kSharesOfWarp; ++i) {
    const int share = warp_index() * kSharesOfWarp + i;
    if (share < shares && col < proj.w.cols)
      parts[i] = four(partials + (share * proj.tokens + token) * proj.w.cols + col);
  }
#pragma unroll
  for (const float4& part : parts) add(sum, part);
  return sum;
}

// x + sum * scale + bias
__device__ __forceinline__ float4 with_residual(const float4& x, const float4& sum, const float4& scale,
                                                const float4& bias) {
  return {x.x + sum.x * scale.x + bias.x, x.y + sum.y * scale.y + bias.y, x.z + sum.z * scale.z + bias.z,
          x.w + sum.w * scale.w + bias.w};
}

}  // namespace adept::cuda
