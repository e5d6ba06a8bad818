#include "warp.h"

#include <algorithm>

namespace cuda_on_cpu {
namespace {

struct Shuffled {
  unsigned char before[kLargestShuffled];
  void* after;
  size_t size;
  int source;
};

void combine_shuffled(void* const* lanes, unsigned mask) {
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const auto* to = static_cast<const Shuffled*>(lanes[__builtin_ctz(left)]);
    if ((mask >> to->source & 1) == 0) fail("a shuffle reads from a lane that is not in its mask");
    std::memcpy(to->after, static_cast<const Shuffled*>(lanes[to->source])->before, to->size);
  }
}

struct Vote {
  bool predicate;
  unsigned result;
};

void combine_votes(void* const* lanes, unsigned mask) {
  unsigned result = 0;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (static_cast<const Vote*>(lanes[lane])->predicate) result |= 1u << lane;
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    static_cast<Vote*>(lanes[__builtin_ctz(left)])->result = result;
  }
}

struct Match {
  uint64_t value;
  unsigned result;
};

void combine_matches(void* const* lanes, unsigned mask) {
  for (unsigned to = mask; to != 0; to &= to - 1) {
    auto* match = static_cast<Match*>(lanes[__builtin_ctz(to)]);
    match->result = 0;
    for (unsigned from = mask; from != 0; from &= from - 1) {
      const int lane = __builtin_ctz(from);
      if (static_cast<const Match*>(lanes[lane])->value == match->value) match->result |= 1u << lane;
    }
  }
}

struct Reduced {
  unsigned value;
  Reduction reduction;
  bool is_signed;
};

unsigned reduce_two(const Reduced& how, unsigned a, unsigned b) {
  const bool a_is_less = how.is_signed ? static_cast<int>(a) < static_cast<int>(b) : a < b;
  switch (how.reduction) {
    case Reduction::kAdd: return a + b;
    case Reduction::kMin: return a_is_less ? a : b;
    case Reduction::kMax: return a_is_less ? b : a;
    case Reduction::kAnd: return a & b;
    case Reduction::kOr: return a | b;
    case Reduction::kXor: return a ^ b;
  }
  return 0;
}

void combine_reduced(void* const* lanes, unsigned mask) {
  const Reduced first = *static_cast<const Reduced*>(lanes[__builtin_ctz(mask)]);
  unsigned result = first.value;
  for (unsigned left = mask & (mask - 1); left != 0; left &= left - 1) {
    const auto* next = static_cast<const Reduced*>(lanes[__builtin_ctz(left)]);
    if (next->reduction != first.reduction || next->is_signed != first.is_signed) {
      fail("lanes of a warp meet in different reductions");
    }
    result = reduce_two(first, result, next->value);
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    static_cast<Reduced*>(lanes[__builtin_ctz(left)])->value = result;
  }
}

}  // namespace

void shuffle(Meeting kind, unsigned mask, void* value, size_t size, int source) {
  Shuffled shuffled{{}, value, size, source};
  std::memcpy(shuffled.before, value, size);
  meet_warp(kind, mask, &shuffled, combine_shuffled);
}

unsigned ballot(unsigned mask, bool predicate) {
  Vote vote{predicate, 0};
  meet_warp(Meeting::kVote, mask, &vote, combine_votes);
  return vote.result;
}

unsigned match_any(unsigned mask, uint64_t value) {
  Match match{value, 0};
  meet_warp(Meeting::kMatch, mask, &match, combine_matches);
  return match.result;
}

unsigned reduce(unsigned mask, unsigned value, Reduction reduction, bool is_signed) {
  Reduced reduced{value, reduction, is_signed};
  meet_warp(Meeting::kReduce, mask, &reduced, combine_reduced);
  return reduced.value;
}

}  // namespace cuda_on_cpu
