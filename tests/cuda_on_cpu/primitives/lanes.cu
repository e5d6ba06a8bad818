// What lanes and threads do together, against plain loops.

#include "../faults/faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr unsigned kEvery = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kResults = 8;

// Every kind of shuffle over parts of `width` lanes, of a type of each size.
template <class T>
__global__ void shuffles(T* out, int amount, int width) {
  pdl_wait();
  const T value = static_cast<T>(lane() * 3 + 1);
  T* const mine = out + lane() * 4;
  mine[0] = __shfl_sync(kEvery, value, amount, width);
  mine[1] = __shfl_up_sync(kEvery, value, static_cast<unsigned>(amount), width);
  mine[2] = __shfl_down_sync(kEvery, value, static_cast<unsigned>(amount), width);
  mine[3] = __shfl_xor_sync(kEvery, value, amount, width);
}

template <class T>
bool shuffles_of() {
  for (int width = 1; width <= kWarp; width *= 2) {
    for (int amount = 0; amount < width; ++amount) {
      Global<T> out(kWarp * 4);
      if (!ran({1, kWarp}, shuffles<T>, out.data(), amount, width)) return false;
      for (int i = 0; i < kWarp; ++i) {
        const int first = i - i % width, last = first + width - 1;
        const int from[4] = {first + amount, i - amount < first ? i : i - amount, i + amount > last ? i : i + amount,
                             i ^ amount};
        for (int k = 0; k < 4; ++k)
          if (out[i * 4 + k] != static_cast<T>(from[k] * 3 + 1)) return false;
      }
    }
  }
  return true;
}

__global__ void shuffled_halves(float* out) {
  pdl_wait();
  const __half2 value = __floats2half2_rn(static_cast<float>(lane()), static_cast<float>(-lane()));
  const __half2 other = __shfl_xor_sync(kEvery, value, 5);
  out[lane()] = __low2float(other) - __high2float(other);
}

bool shuffles_halves() {
  Global<float> out(kWarp);
  if (!ran({1, kWarp}, shuffled_halves, out.data())) return false;
  for (int i = 0; i < kWarp; ++i)
    if (out[i] != 2.0f * static_cast<float>(i ^ 5)) return false;
  return true;
}

// Two groups of lanes in different branches, each with a mask of its own.
__global__ void votes(const int* x, unsigned* out) {
  pdl_wait();
  const bool low = lane() < 12;
  const unsigned mask = low ? 0xfffu : ~0xfffu;
  const int value = x[lane()];
  unsigned* const mine = out + lane() * kResults;
  if (low) {
    mine[0] = __ballot_sync(0xfffu, value > 3);
    mine[1] = static_cast<unsigned>(__reduce_min_sync(0xfffu, value));
  } else {
    mine[0] = __ballot_sync(~0xfffu, value > 3);
    mine[1] = static_cast<unsigned>(__reduce_min_sync(~0xfffu, value));
  }
  mine[2] = static_cast<unsigned>(__any_sync(mask, value > 8));
  mine[3] = static_cast<unsigned>(__all_sync(mask, value < 9));
  mine[4] = __match_any_sync(mask, value);
  mine[5] = static_cast<unsigned>(__reduce_add_sync(mask, value));
  mine[6] = __reduce_max_sync(mask, static_cast<unsigned>(value));
  mine[7] = __reduce_xor_sync(mask, static_cast<unsigned>(value)) ^
            __reduce_or_sync(mask, static_cast<unsigned>(value)) << 8 ^
            __reduce_and_sync(mask, static_cast<unsigned>(value)) << 16;
}

bool votes_of_groups() {
  Global<int> x(kWarp);
  for (int i = 0; i < kWarp; ++i) x[i] = i * 7 % 11 - 1;
  Global<unsigned> out(kWarp * kResults);
  if (!ran({1, kWarp}, votes, x.data(), out.data())) return false;
  for (int i = 0; i < kWarp; ++i) {
    unsigned ballot = 0, match = 0, any = 0, all = 1, most = 0, exclusive = 0, either = 0, both = ~0u;
    int least = 1000, sum = 0;
    for (int k = i < 12 ? 0 : 12; k < (i < 12 ? 12 : kWarp); ++k) {
      const auto value = static_cast<unsigned>(x[k]);
      ballot |= (x[k] > 3 ? 1u : 0u) << k;
      match |= (x[k] == x[i] ? 1u : 0u) << k;
      any |= x[k] > 8;
      all &= x[k] < 9;
      least = std::min(least, x[k]);
      sum += x[k];
      most = std::max(most, value);
      exclusive ^= value;
      either |= value;
      both &= value;
    }
    const unsigned expected[kResults] = {ballot, static_cast<unsigned>(least),  any, all, match,
                                         static_cast<unsigned>(sum), most, exclusive ^ either << 8 ^ both << 16};
    for (int k = 0; k < kResults; ++k)
      if (out[i * kResults + k] != expected[k]) return false;
  }
  return true;
}

// A block whose last warp has few lanes.
constexpr int kThreads = 70;

__global__ void barriers(int* out) {
  pdl_wait();
  const int i = static_cast<int>(threadIdx.x + threadIdx.y * blockDim.x + threadIdx.z * blockDim.x * blockDim.y);
  int sum = __syncthreads_count(i % 3 == 0);
  sum += 1000 * __syncthreads_or(i == kThreads - 1) + 2000 * __syncthreads_or(i == kThreads);
  sum += 4000 * __syncthreads_and(i < kThreads) + 8000 * __syncthreads_and(i < kThreads - 1);
  if (i >= 64) sum += __shfl_sync(0x3fu, 0, 5);
  out[i] = sum;
}

bool barriers_that_tell() {
  Global<int> out(kThreads);
  return ran({1, dim3(7, 5, 2)}, barriers, out.data()) && out.is_filled_with(24 + 1000 + 4000);
}

const Registered kAll[] = {
    {"shuffles_of_int", shuffles_of<int>},
    {"shuffles_of_unsigned", shuffles_of<unsigned>},
    {"shuffles_of_float", shuffles_of<float>},
    {"shuffles_of_double", shuffles_of<double>},
    {"shuffles_of_long_long", shuffles_of<long long>},
    {"shuffles_of_halves", shuffles_halves},
    {"votes", votes_of_groups},
    {"barriers_that_tell", barriers_that_tell},
};

}  // namespace
}  // namespace faults
