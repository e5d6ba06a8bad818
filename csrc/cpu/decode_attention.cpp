// decode_attention: one query for each sequence over the keys and values in its slot.
//
// Layout: keys of a head are contiguous, [capacity, head_dim], and so are its values. A task is one head of one token,
// or of up to 4 neighbouring tokens of one sequence, which share the loads. It goes over the positions once, 16 at a
// time: scores, the running maximum and sum of the softmax (Milakov and Gimelshein 2018), and the values weighted so
// far. Lower bound: the bytes of the `length` positions in use; others are not read. Limit: memory bandwidth for decode
// steps, the multiply-adds for prompts; for short contexts the time is negligible.
#include <limits>

#include "inputs.h"

namespace adept::ADEPT_ISA {
namespace {

constexpr int64_t kPositionsWorthATask = 64;  // below this, waking a thread costs more than it saves

constexpr int kQueries = 4;  // neighbouring tokens of a task

// One query's softmax so far, over the positions before some position.
struct Query {
  const float* scaled;  // zeros past head_dim
  float* sums;          // of the weighted values
  float highest = -std::numeric_limits<float>::infinity();
  float total = 0;
};

// The keys and values of one head of a slot.
template <class Element>
class Head {
 public:
  Head(const Element* keys, const Element* values, int64_t head_dim)
      : keys_(keys), values_(values), head_dim_(head_dim) {}

  // Adds positions begin to begin + count - 1, at most 16.
  template <int Queries>
  void add(Query* queries, int64_t begin, int count) const {
    F32x16 products[Queries][kLanes];
    for (int i = 0; i < kLanes; ++i)
      for (int q = 0; q < Queries; ++q) products[q][i] = broadcast(0.0f);
    for (int i = 0; i < count; ++i) multiply<Queries>(queries, keys_ + (begin + i) * head_dim_, products, i);
    float weights[Queries][kLanes], corrections[Queries];
    for (int q = 0; q < Queries; ++q) corrections[q] = weigh(queries[q], sums_of(products[q]), count, weights[q]);
    for_columns(head_dim_, [&](int64_t c, int lanes) {
      F32x16 sums[Queries];
#pragma GCC unroll 16
      for (int q = 0; q < Queries; ++q) sums[q] = mul(load(queries[q].sums + c), broadcast(corrections[q]));
      for (int i = 0; i < count; ++i) {
        const F32x16 value = load_columns(values_ + (begin + i) * head_dim_ + c, lanes);
#pragma GCC unroll 16
        for (int q = 0; q < Queries; ++q) sums[q] = fma(value, broadcast(weights[q][i]), sums[q]);
      }
#pragma GCC unroll 16
      for (int q = 0; q < Queries; ++q) store(queries[q].sums + c, sums[q]);
    });
  }

 private:
  // products[q][i]: the lanes of query q · key.
  template <int Queries>
  void multiply(const Query* queries, const Element* key, F32x16 (&products)[Queries][kLanes], int i) const {
    F32x16 totals[Queries];
#pragma GCC unroll 16
    for (int q = 0; q < Queries; ++q) totals[q] = broadcast(0.0f);
    for_columns(head_dim_, [&](int64_t c, int lanes) {
      const F32x16 columns = load_columns(key + c, lanes);
#pragma GCC unroll 16
      for (int q = 0; q < Queries; ++q) totals[q] = fma(columns, load(queries[q].scaled + c), totals[q]);
    });
#pragma GCC unroll 16
    for (int q = 0; q < Queries; ++q) products[q][i] = totals[q];
  }

  // The weights of 16 scores, of which `count` exist; returns the factor for the sums so far.
  static float weigh(Query& query, F32x16 scores, int count, float (&weights)[kLanes]) {
    float each[kLanes];
    store(each, scores);
    float highest = query.highest;
    for (int i = 0; i < count; ++i) highest = std::max(highest, each[i]);
    const F32x16 below = sub(scores, broadcast(highest));
    // The product with 0 keeps a NaN and turns an infinity into NaN, which the exponential would hide.
    store(weights, fma(below, broadcast(0.0f), exp_nonpositive(below)));
    const float correction = std::exp(query.highest - highest);
    query.total = query.total * correction + sum(load_first(weights, count));
    query.highest = highest;
    return correction;
  }

  static F32x16 load_columns(const Element* from, int lanes) {
    return lanes == kLanes ? load(from) : load_first(from, lanes);
  }

  const Element* keys_;
  const Element* values_;
  int64_t head_dim_;
};

// Neighbouring tokens of one slot, each of which attends to as many positions as the one before it or to more.
struct Group {
  int64_t first;
  int count;
};

template <class Element>
class Attention {
 public:
  explicit Attention(const DecodeAttention& attention)
      : attention_(attention), stride_(round_up(attention.cache.head_dim, kLanes)), groups_(attention.tokens) {
    for (int64_t token = 0; token < attention.tokens; ++token)
      if (token > 0 && continues(groups_[group_count_ - 1], token))
        ++groups_[group_count_ - 1].count;
      else
        groups_[group_count_++] = {token, 1};
  }

  int64_t groups() const { return group_count_; }

  void run(int64_t index, int64_t head) const {
    const Group group = groups_.data()[index];
    const CacheLayer& cache = attention_.cache;
    const int64_t head_dim = cache.head_dim, head_size = cache.capacity * head_dim;
    const auto* keys = static_cast<const Element*>(cache.data);
    const int64_t at = (std::max<int64_t>(attention_.slots[group.first], 0) * cache.heads + head) * head_size;
    const Head<Element> of_head(keys + at, keys + cache.slots * cache.heads * head_size + at, head_dim);
    Buffer<float> scratch(2 * kQueries * stride_);
    Query queries[kQueries];
    for (int q = 0; q < group.count; ++q) {
      float* scaled = scratch + 2 * q * stride_;
      queries[q] = {scaled, scaled + stride_};
      const float* from = attention_.q + ((group.first + q) * cache.heads + head) * head_dim;
      for_columns(head_dim, [&](int64_t c, int lanes) {
        store(scaled + c, mul(load_first(from + c, lanes), broadcast(attention_.scale)));
        store(queries[q].sums + c, broadcast(0.0f));
      });
    }
    int64_t shared = 0;
    if (group.count == kQueries)
      for (; shared + kLanes <= length(group.first); shared += kLanes)
        of_head.template add<kQueries>(queries, shared, kLanes);
    for (int q = 0; q < group.count; ++q) {
      const int64_t token = group.first + q, end = length(token);
      for (int64_t begin = shared; begin < end; begin += kLanes)
        of_head.template add<1>(queries + q, begin, int(std::min<int64_t>(kLanes, end - begin)));
      const F32x16 inverse = broadcast(end ? 1 / queries[q].total : 0.0f);
      float* to = attention_.out + (token * cache.heads + head) * head_dim;
      for_columns(head_dim,
                  [&](int64_t c, int lanes) { store_first(to + c, mul(load(queries[q].sums + c), inverse), lanes); });
    }
  }

 private:
  int64_t length(int64_t token) const { return attention_.slots[token] < 0 ? 0 : attention_.lengths[token]; }

  bool continues(const Group& group, int64_t token) const {
    return group.count < kQueries && attention_.slots[token] == attention_.slots[token - 1] &&
           length(token) >= length(token - 1);
  }

  const DecodeAttention& attention_;
  const int64_t stride_;
  Buffer<Group> groups_;
  int64_t group_count_ = 0;
};

template <class Element>
void attend(const Threads& threads, const DecodeAttention& operands) {
  const Attention<Element> attention(operands);
  const int64_t heads = operands.cache.heads, tasks = attention.groups() * heads;
  if (tasks == 0) return;
  const int64_t step = operands.longest >= kPositionsWorthATask ? 1 : tasks;
  parallel_pieces(threads, tasks, step, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attention.run(i / heads, i % heads);
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
