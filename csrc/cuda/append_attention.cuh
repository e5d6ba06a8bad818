// Rotary embedding, append to the cache and attention of one head's split in one go, by a team of 8 warps.
//
// A warp turns one head's q, or the k and v of one new token of the same sequence, which it keeps in shared memory in
// the cache's dtype: the team attends to those rows there, so it needs no other block to have written them. The block
// whose split has a token's position appends its own k and v to the cache. Sums have the order of decode_attention.cu,
// and the last split of a head to be done merges them in one order.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/blocks.cuh"
#include "cuda/rotary.cuh"

namespace adept::cuda {

struct AppendAttention {
  RotaryAppend append;        // without q_out
  DecodeAttention attention;  // without q and lengths, which are positions + 1
  uint64_t* arrivals;         // [tokens, heads], 0
};

namespace attention {

// Shared memory; the new rows, [tokens, k/v, head_dim] of Element, are behind it.
struct alignas(16) AppendShared {
  MergeShared merge;
  float highest[kMaxGroups], totals[kMaxGroups];
  float sums[kThreads * 8];  // of 32 groups with 64 dimensions, 16 with 128 or 8 with 256
  float q[kMaxHeadDim];
  int new_rows[kSplit];  // the token whose row a position of the split is, or -1
  uint64_t seen;
};

// Rows of the cache, except for those that are new.
template <class Element>
struct NewAndCachedRows {
  CachedRows cached;
  const int* new_rows;  // of the position `begin` and those behind it
  int begin;
  const Element* fresh;  // of the first token
  int stride;            // between tokens

  __device__ uint4 operator()(int position, int chunk) const {
    const int token = new_rows[position - begin];
    if (token < 0) return cached(position, chunk);
    return reinterpret_cast<const uint4*>(fresh + token * stride)[chunk];
  }
};

template <class Element, int kLanes, class Team>
class AppendUnit {
  using Part = Split<Element, kLanes, 1>;
  static constexpr int kItems = kLanes / 4;  // rotary pairs of a lane
  static constexpr int kRows = kWarps * Part::kGroups;
  static_assert(kRows <= kMaxGroups && kRows * kLanes * Part::kColumns <= kThreads * 8);

 public:
  __device__ AppendUnit(const AppendAttention& op, const Partials& partials, int64_t splits, AppendShared& shared)
      : op_(op),
        partials_(partials),
        splits_(splits),
        shared_(shared),
        fresh_(reinterpret_cast<Element*>(&shared + 1)),
        pairing_{static_cast<int>(op.append.half), static_cast<int>(op.append.cache.head_dim)} {}

  // Of a token's head, the positions of one split. The whole team calls it.
  __device__ void attend(int64_t token, int64_t of_head, int64_t split) const {
    const CacheLayer& cache = op_.append.cache;
    const int64_t slot = op_.append.slots[token], length = length_of_token(token, slot);
    const int64_t head = token * cache.heads + of_head;
    const int begin = static_cast<int>(split * kSplit), end = static_cast<int>(min(begin + int64_t{kSplit}, length));
    float* const out = op_.attention.out + head * cache.head_dim;
    if (begin >= length) {
      if (length == 0 && split == 0)
        for (int column = threadIdx.x; column < cache.head_dim; column += Team::threads()) out[column] = 0;
      return;
    }
    turn_new_rows(token, of_head, slot, begin, end);
    const Part part(op_.attention);
    const auto* keys = static_cast<const Element*>(cache.data) + head_offset(cache, slot, of_head);
    const int head_dim = pairing_.head_dim;
    const NewAndCachedRows<Element> key_rows{{keys, part.chunks}, shared_.new_rows, begin, fresh_, 2 * head_dim};
    const NewAndCachedRows<Element> value_rows{
        {keys + value_offset(cache), part.chunks}, shared_.new_rows, begin, fresh_ + head_dim, 2 * head_dim};
    float q[Part::kColumns];
    part.load_query(shared_.q, q);
    part.store(part.over(key_rows, value_rows, begin, end, q), shared_.highest, shared_.totals, shared_.sums);
    Team::sync();
    const int64_t used = splits_of(length), at = head * splits_ + split;
    merge(shared_.highest, shared_.totals, shared_.sums, kRows, head_dim,
          [&](int column, float value, float max, float total) {
            if (used == 1) {
              out[column] = value / total;
              return;
            }
            partials_.sums[at * head_dim + column] = value;
            if (column == 0) partials_.softmax[at] = {max, total};
          });
    if (used > 1 && is_last_of<Team>(op_.arrivals + head, static_cast<int>(used), &shared_.seen))
      merge_head<Team>(op_.attention, partials_, splits_, head, used, shared_.merge);
  }

 private:
  // 0 for a token that is left out.
  __device__ int64_t length_of_token(int64_t token, int64_t slot) const {
    const int64_t position = op_.append.positions[token];
    const bool exists = in_range(slot, op_.append.cache.slots) && in_range(position, op_.append.cache.capacity) &&
                        position < op_.attention.longest;
    return exists ? position + 1 : 0;
  }

  // Turns the token's q, and the new rows of its sequence that are in the split, which begin to end it attends to.
  __device__ void turn_new_rows(int64_t token, int64_t of_head, int64_t slot, int begin, int end) const {
    const RotaryAppend& append = op_.append;
    for (int i = threadIdx.x; i < kSplit; i += Team::threads()) shared_.new_rows[i] = -1;
    Team::sync();  // what is in shared memory has been read
    const int lane = lane_index();
    for (int other = warp_index(); other < append.tokens; other += kWarps) {
      const int64_t position = append.positions[other];
      if (append.slots[other] != slot || position < begin || position >= end) continue;
      turn_row(other, of_head, position, other == token);
      if (lane == 0) shared_.new_rows[position - begin] = other;
    }
    if (warp_index() == kWarps - 1) {
      rotary::Row<kItems> q(qkv_of(token, of_head), pairing_, lane);
      rotary::HeadNorm<kItems>(append.q_norm, pairing_, lane).apply(q, pairing_, lane);
      q.rotate(rotary::Angles<kItems>(append, append.positions[token], lane));
      q.store(shared_.q, pairing_, lane);
    }
    Team::sync();
  }

  __device__ const float* qkv_of(int64_t token, int64_t of_head) const {
    return op_.append.qkv + 3 * (token * op_.append.cache.heads + of_head) * pairing_.head_dim;
  }

  // k and v of a new token, to shared memory and to the cache if `is_own`.
  __device__ void turn_row(int token, int64_t of_head, int64_t position, bool is_own) const {
    const RotaryAppend& append = op_.append;
    const CacheLayer& cache = append.cache;
    const int lane = lane_index();
    const float* const from = qkv_of(token, of_head) + pairing_.head_dim;
    rotary::Row<kItems> k(from, pairing_, lane);
    const rotary::Row<kItems> v(from + pairing_.head_dim, pairing_, lane);
    rotary::HeadNorm<kItems>(append.k_norm, pairing_, lane).apply(k, pairing_, lane);
    k.rotate(rotary::Angles<kItems>(append, position, lane));
    Element* const fresh = fresh_ + token * 2 * pairing_.head_dim;
    k.store(fresh, pairing_, lane);
    v.store(fresh + pairing_.head_dim, pairing_, lane);
    if (!is_own) return;
    Element* const key = static_cast<Element*>(cache.data) + head_offset(cache, append.slots[token], of_head) +
                         position * cache.head_dim;
    k.store(key, pairing_, lane);
    v.store(key + value_offset(cache), pairing_, lane);
  }

  const AppendAttention& op_;
  const Partials& partials_;
  int64_t splits_;
  AppendShared& shared_;
  Element* fresh_;
  rotary::Pairing pairing_;
};

}  // namespace attention
}  // namespace adept::cuda
