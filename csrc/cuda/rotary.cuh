// A warp's share of one head's q, k or v: LayerNorm and rotary embedding in registers.
//
// Rotation turns dimension i with i + half, so a lane holds such pairs, and single dimensions of those that do not
// turn.
#pragma once

#include "cuda/cache.cuh"
#include "cuda/warp.cuh"

namespace adept::cuda::rotary {

struct Pair {
  float first;
  float second;  // 0 for a single dimension
};

// The dimensions of a head as items: `half` pairs, then single dimensions.
struct Pairing {
  int half;
  int head_dim;

  __device__ int count() const { return head_dim - half; }
  __device__ bool turns(int item) const { return item < half; }
  __device__ int first(int item) const { return turns(item) ? item : item + half; }
  __device__ int second(int item) const { return item + half; }

  __device__ Pair load(const float* row, int item) const {
    if (item >= count()) return {0, 0};
    return {row[first(item)], turns(item) ? row[second(item)] : 0};
  }

  template <class Element>
  __device__ void store(const Pair& value, int item, Element* row) const {
    if (item >= count()) return;
    store_narrow(value.first, row + first(item));
    if (turns(item)) store_narrow(value.second, row + second(item));
  }
};

// The rotation of a lane's pairs at one position; single dimensions do not turn.
template <int kItems>
struct Angles {
  float cos[kItems];
  float sin[kItems];

  __device__ Angles(const RotaryAppend& append, int64_t position, int lane) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = lane + i * kWarpSize;
      const bool turns = item < append.half;
      cos[i] = turns ? append.cos[position * append.half + item] : 1;
      sin[i] = turns ? append.sin[position * append.half + item] : 0;
    }
  }
};

// A lane's share of a row: items lane, lane + 32, ...
template <int kItems>
struct Row {
  Pair items[kItems];

  __device__ Row(const float* from, const Pairing& pairing, int lane) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) items[i] = pairing.load(from, lane + i * kWarpSize);
  }

  template <class Element>
  __device__ void store(Element* to, const Pairing& pairing, int lane) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) pairing.store(items[i], lane + i * kWarpSize, to);
  }

  __device__ float sum() const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) total += items[i].first + items[i].second;
    return warp_sum(total);
  }

  // The mean is taken off before squaring: two passes over registers cost little, and nothing cancels.
  __device__ void normalize(const Row& gamma, const Row& beta, float eps, const Pairing& pairing, int lane) {
    const float mean = sum() / pairing.head_dim;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = lane + i * kWarpSize;
      items[i].first = item < pairing.count() ? items[i].first - mean : 0;
      items[i].second = pairing.turns(item) ? items[i].second - mean : 0;
      squares += items[i].first * items[i].first + items[i].second * items[i].second;
    }
    const float factor = rsqrtf(warp_sum(squares) / pairing.head_dim + eps);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      items[i].first = items[i].first * factor * gamma.items[i].first + beta.items[i].first;
      items[i].second = items[i].second * factor * gamma.items[i].second + beta.items[i].second;
    }
  }

  __device__ void rotate(const Angles<kItems>& by) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const Pair x = items[i];
      items[i].first = x.first * by.cos[i] - x.second * by.sin[i];
      items[i].second = x.second * by.cos[i] + x.first * by.sin[i];
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kItems; ++i) items[i] = {0, 0};
  }
};

// The LayerNorm of q or of k, which may be none.
template <int kItems>
struct HeadNorm {
  Row<kItems> gamma, beta;
  float eps;
  bool is_given;

  __device__ HeadNorm(const Norm& norm, const Pairing& pairing, int lane)
      : gamma(norm.gamma, norm.gamma ? pairing : Pairing{}, lane),
        beta(norm.beta, norm.gamma ? pairing : Pairing{}, lane),
        eps(norm.eps),
        is_given(norm.gamma != nullptr) {}

  __device__ void apply(Row<kItems>& row, const Pairing& pairing, int lane) const {
    if (is_given) row.normalize(gamma, beta, eps, pairing, lane);
  }
};

}  // namespace adept::cuda::rotary
