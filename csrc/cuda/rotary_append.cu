// rotary_append: LayerNorm of each head's q and k, rotary embedding, and the append of k and v to the cache.
//
// Layout: a warp takes q, k and v of one head of one token. Rotation turns dimension i with i + half, so a lane holds
// such pairs, and single dimensions of those that do not turn. Lower bound: q, k and v of a token come in as float32, q
// goes out as float32 and k and v in 16 bits: 80 kB at the 8B's shapes, 0.03 us at 3.0 TB/s. Limit: the launch and one
// chain of loads, slot and position, then cos and sin; the rows of qkv arrive meanwhile.

#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace adept::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int64_t kMaxHeadDim = 256;

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

template <class Element, int kItems>
__global__ void __launch_bounds__(kThreads, kItems == 2 ? 6 : 2) append_heads(const RotaryAppend append) {
  pdl_launch_dependents();
  const CacheLayer& cache = append.cache;
  const int lane = threadIdx.x % kWarpSize;
  const Pairing pairing{static_cast<int>(append.half), static_cast<int>(cache.head_dim)};
  const HeadNorm<kItems> q_norm(append.q_norm, pairing, lane), k_norm(append.k_norm, pairing, lane);
  pdl_wait();
  const int64_t token = blockIdx.y, head = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (head >= cache.heads) return;
  const int64_t at = token * cache.heads + head;
  const float* from = append.qkv + 3 * at * cache.head_dim;
  const int64_t slot = append.slots[token], position = append.positions[token];
  Row<kItems> q(from, pairing, lane), k(from + cache.head_dim, pairing, lane);
  const Row<kItems> v(from + 2 * cache.head_dim, pairing, lane);
  float* q_out = append.q_out + at * cache.head_dim;
  if (!in_range(slot, cache.slots) || !in_range(position, cache.capacity)) {
    q.clear();
    return q.store(q_out, pairing, lane);
  }
  const Angles<kItems> angles(append, position, lane);
  q_norm.apply(q, pairing, lane);
  k_norm.apply(k, pairing, lane);
  q.rotate(angles);
  k.rotate(angles);
  Element* key = static_cast<Element*>(cache.data) + head_offset(cache, slot, head) + position * cache.head_dim;
  q.store(q_out, pairing, lane);
  k.store(key, pairing, lane);
  v.store(key + value_offset(cache), pairing, lane);
}

template <class Element>
cudaError_t append_of(const RotaryAppend& append, cudaStream_t stream) {
  const int64_t heads = append.cache.heads, items = append.cache.head_dim - append.half;
  const Shape shape{dim3(static_cast<unsigned>((heads + kWarps - 1) / kWarps), static_cast<unsigned>(append.tokens)),
                    dim3(kThreads)};
  if (items <= 2 * kWarpSize) return launch(stream, shape, append_heads<Element, 2>, append);
  if (items <= 4 * kWarpSize) return launch(stream, shape, append_heads<Element, 4>, append);
  return launch(stream, shape, append_heads<Element, 8>, append);
}

}  // namespace

cudaError_t rotary_append(const RotaryAppend& append, cudaStream_t stream) {
  const CacheLayer& cache = append.cache;
  if (append.tokens == 0 || cache.heads == 0 || cache.head_dim == 0) return cudaSuccess;
  if (cache.head_dim > kMaxHeadDim || !fits_grid(cache.heads, append.tokens)) return cudaErrorInvalidValue;
  switch (cache.format) {
    case Format::kFloat16: return append_of<__half>(append, stream);
    case Format::kBFloat16: return append_of<__nv_bfloat16>(append, stream);
    default: return append_of<float>(append, stream);
  }
}

}  // namespace adept::cuda
