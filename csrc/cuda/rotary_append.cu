// rotary_append: LayerNorm of each head's q and k, rotary embedding, and the append of k and v to the cache.
//
// Layout: a warp takes q, k and v of one head of one token. Rotation turns dimension i with i + half, so a lane holds
// such pairs, and single dimensions of those that do not turn. Lower bound: q, k and v of a token come in as float32, q
// goes out as float32 and k and v in 16 bits: 80 kB at the 8B's shapes, 0.03 us at 3.0 TB/s. Limit: the launch and one
// chain of loads, slot and position, then cos and sin; the rows of qkv arrive meanwhile.

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/rotary.cuh"

namespace adept::cuda {
namespace {

using namespace rotary;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int64_t kMaxHeadDim = 256;

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
