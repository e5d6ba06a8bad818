// decode_attention: one query for each sequence over the keys and values in its slot.
//
// Layout: keys of a head are contiguous, [capacity, head_dim], and so are its values. A task is one head of one token.
// It goes over the positions once, 16 at a time: scores, the running maximum and sum of the softmax (Milakov and
// Gimelshein 2018), and the values weighted so far. Lower bound: the bytes of the `length` positions in use; others are
// not read. Limit: memory bandwidth; for short contexts the time is negligible.
#include <limits>

#include "inputs.h"

namespace adept::ADEPT_ISA {
namespace {

constexpr int64_t kPositionsWorthATask = 64;  // below this, waking a thread costs more than it saves

template <class Element>
class Head {
 public:
  // q and out: [head_dim]; scratch: two rows of round_up(head_dim, 16).
  Head(const Element* keys, const Element* values, int64_t head_dim, float* scratch)
      : keys_(keys),
        values_(values),
        head_dim_(head_dim),
        query_(scratch),
        sums_(scratch + round_up(head_dim, kLanes)) {}

  void attend(const float* q, float scale, int64_t length, float* out) {
    for_columns(head_dim_, [&](int64_t c, int lanes) {
      store(query_ + c, mul(load_first(q + c, lanes), broadcast(scale)));
      store(sums_ + c, broadcast(0.0f));
    });
    for (int64_t begin = 0; begin < length; begin += kLanes) add(begin, int(std::min<int64_t>(kLanes, length - begin)));
    const F32x16 inverse = broadcast(length ? 1 / total_ : 0.0f);
    for_columns(head_dim_, [&](int64_t c, int lanes) { store_first(out + c, mul(load(sums_ + c), inverse), lanes); });
  }

 private:
  void add(int64_t begin, int count) {
    float scores[kLanes] = {};
    float highest = highest_;
    for (int i = 0; i < count; ++i) {
      scores[i] = score(keys_ + (begin + i) * head_dim_);
      highest = std::max(highest, scores[i]);
    }
    const F32x16 below = sub(load(scores), broadcast(highest));
    float weights[kLanes];
    // The product with 0 keeps a NaN and turns an infinity into NaN, which the exponential would hide.
    store(weights, fma(below, broadcast(0.0f), exp_nonpositive(below)));
    const float correction = std::exp(highest_ - highest);
    total_ = total_ * correction + sum(load_first(weights, count));
    highest_ = highest;
    for_columns(head_dim_, [&](int64_t c, int lanes) {
      F32x16 value = mul(load(sums_ + c), broadcast(correction));
      for (int i = 0; i < count; ++i)
        value = fma(load_columns(values_ + (begin + i) * head_dim_ + c, lanes), broadcast(weights[i]), value);
      store(sums_ + c, value);
    });
  }

  float score(const Element* key) const {
    F32x16 total = broadcast(0.0f);
    for_columns(head_dim_,
                [&](int64_t c, int lanes) { total = fma(load_columns(key + c, lanes), load(query_ + c), total); });
    return sum(total);
  }

  static F32x16 load_columns(const Element* from, int lanes) {
    return lanes == kLanes ? load(from) : load_first(from, lanes);
  }

  const Element* keys_;
  const Element* values_;
  int64_t head_dim_;
  float* query_;  // scaled, zeros past head_dim
  float* sums_;
  float highest_ = -std::numeric_limits<float>::infinity();
  float total_ = 0;
};

template <class Element>
void attend(const Threads& threads, const DecodeAttention& attention) {
  const CacheLayer& cache = attention.cache;
  const int64_t head_size = cache.capacity * cache.head_dim;
  const auto* keys = static_cast<const Element*>(cache.data);
  const Element* values = keys + cache.slots * cache.heads * head_size;
  const int64_t heads = attention.tokens * cache.heads;
  if (heads == 0) return;
  const int64_t step = attention.longest >= kPositionsWorthATask ? 1 : heads;
  parallel_pieces(threads, heads, step, [&](int64_t begin, int64_t end) {
    Buffer<float> scratch(2 * round_up(cache.head_dim, kLanes));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / cache.heads, head = i % cache.heads;
      const int64_t slot = attention.slots[token];
      const int64_t length = slot < 0 ? 0 : attention.lengths[token];
      const int64_t at = (std::max<int64_t>(slot, 0) * cache.heads + head) * head_size;
      Head<Element>(keys + at, values + at, cache.head_dim, scratch)
          .attend(attention.q + i * cache.head_dim, attention.scale, length, attention.out + i * cache.head_dim);
    }
  });
}

}  // namespace

void decode_attention(const Threads& threads, const DecodeAttention& attention) {
  switch (attention.cache.format) {
    case Format::kFloat16: return attend<Half>(threads, attention);
    case Format::kBFloat16: return attend<BFloat16>(threads, attention);
    default: return attend<float>(threads, attention);
  }
}

}  // namespace adept::ADEPT_ISA
