// rotary_append: LayerNorm of q and k head by head, rotary embedding, and the append of k and v to the cache.
//
// Layout: qkv is [tokens, heads, (q, k, v), head_dim]; keys of a head are contiguous in the cache. The first `half`
// dimensions of a head are rotated with the next `half`; the others stay. Lower bound: a few kB a token, negligible.
// Limit: the start of the threads.
#include "inputs.h"

namespace adept::ADEPT_ISA {
namespace {

constexpr int64_t kHeadsPerTask = 256;

inline void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for_columns(half, [&](int64_t c, int lanes) {
    const F32x16 cosine = load_first(cos + c, lanes), sine = load_first(sin + c, lanes);
    const F32x16 first = load_first(x + c, lanes), second = load_first(x + half + c, lanes);
    store_first(x + c, sub(mul(first, cosine), mul(second, sine)), lanes);
    store_first(x + half + c, add(mul(second, cosine), mul(first, sine)), lanes);
  });
}

template <class Element>
void narrow(const float* from, int64_t count, Element* to) {
  for_columns(count, [&](int64_t c, int lanes) { store_first(to + c, load_first(from + c, lanes), lanes); });
}

template <class Element>
void append(const Threads& threads, const RotaryAppend& rotary) {
  const CacheLayer& cache = rotary.cache;
  const int64_t head_dim = cache.head_dim;
  const int64_t values_at = cache.slots * cache.heads * cache.capacity * head_dim;
  const auto turned = [&](const float* from, const Norm& norm, int64_t position, float* to) {
    if (norm.gamma)
      layernorm(from, head_dim, norm, to);
    else
      std::memcpy(to, from, size_t(head_dim) * sizeof(float));
    rotate(to, rotary.cos + position * rotary.half, rotary.sin + position * rotary.half, rotary.half);
  };
  parallel_pieces(threads, rotary.tokens * cache.heads, kHeadsPerTask, [&](int64_t begin, int64_t end) {
    Buffer<float> key(head_dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / cache.heads, head = i % cache.heads;
      if (rotary.slots[token] < 0) {
        std::memset(rotary.q_out + i * head_dim, 0, size_t(head_dim) * sizeof(float));
        continue;
      }
      const int64_t position = rotary.positions[token];
      const float* qkv = rotary.qkv + 3 * i * head_dim;
      const int64_t row = (rotary.slots[token] * cache.heads + head) * cache.capacity + position;
      Element* to = static_cast<Element*>(cache.data) + row * head_dim;
      turned(qkv, rotary.q_norm, position, rotary.q_out + i * head_dim);
      turned(qkv + head_dim, rotary.k_norm, position, key);
      narrow(key.data(), head_dim, to);
      narrow(qkv + 2 * head_dim, head_dim, to + values_at);
    }
  });
}

}  // namespace

void rotary_append(const Threads& threads, const RotaryAppend& rotary) {
  switch (rotary.cache.format) {
    case Format::kFloat16: return append<Half>(threads, rotary);
    case Format::kBFloat16: return append<BFloat16>(threads, rotary);
    default: return append<float>(threads, rotary);
  }
}

}  // namespace adept::ADEPT_ISA
