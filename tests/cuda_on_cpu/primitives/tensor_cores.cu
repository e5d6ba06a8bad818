// mma.sync against a product in float64, and copies to shared memory.

#include <cmath>
#include <random>

#include "../faults/faults.h"

using namespace adept::cuda;

namespace faults {
namespace {

constexpr int kM = 16, kN = 8, kDepth = 48;

__device__ float widened(__half x) { return __half2float(x); }
__device__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

// c = a · bᵀ of one warp, a [16, kDepth] and b [8, kDepth].
template <class T>
__global__ void product(const T* a, const T* b, float* c) {
  __shared__ __align__(16) T held_a[kM * 16];
  __shared__ __align__(16) T held_b[kN * 16];
  pdl_wait();
  const int group = lane() / 4, within = lane() % 4;
  float sums[4] = {};
  for (int k = 0; k < kDepth; k += 16) {
    copy_async(held_a + lane() * 8, a + lane() / 2 * kDepth + k + lane() % 2 * 8);
    if (lane() < 16) copy_async(held_b + lane() * 8, b + lane() / 2 * kDepth + k + lane() % 2 * 8);
    end_copies();
    wait_for_copies<0>();
    __syncwarp();
    uint32_t left[4], right[2];
    for (int i = 0; i < 4; ++i) {
      memcpy(&left[i], held_a + (group + i % 2 * 8) * 16 + within * 2 + i / 2 * 8, sizeof(uint32_t));
    }
    for (int i = 0; i < 2; ++i) memcpy(&right[i], held_b + group * 16 + within * 2 + i * 8, sizeof(uint32_t));
    if constexpr (std::is_same_v<T, __half>) {
      multiply_add_f16(sums, left, right);
    } else {
      multiply_add_bf16(sums, left, right);
    }
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * kN + within * 2 + i % 2] = sums[i];
}

template <class T>
bool products() {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  Global<T> a(kM * kDepth), b(kN * kDepth);
  for (int i = 0; i < kM * kDepth; ++i) a[i] = T(normal(generator));
  for (int i = 0; i < kN * kDepth; ++i) b[i] = T(normal(generator));
  Global<float> c(kM * kN);
  if (!ran({1, 32}, product<T>, a.data(), b.data(), c.data())) return false;
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      double exact = 0, size = 0;
      for (int k = 0; k < kDepth; ++k) {
        const double term = double{widened(a[m * kDepth + k])} * widened(b[n * kDepth + k]);
        exact += term;
        size += std::fabs(term);
      }
      if (!(std::fabs(c[m * kN + n] - exact) <= 4e-6 * size)) return false;
    }
  }
  return true;
}

// Groups land in their order, and bytes that are not asked for are zeros.
__global__ void copied(const int* x, int* out) {
  __shared__ __align__(16) int held[12];
  pdl_wait();
  for (int i = 0; i < 3; ++i) {
    copy_async(held + 4 * i, x + 4 * i, i == 2 ? 8 : 16);
    end_copies();
  }
  wait_for_copies<1>();
  for (int i = 0; i < 8; ++i) out[i] = held[i];
  wait_for_copies<0>();
  for (int i = 8; i < 12; ++i) out[i] = held[i];
}

bool copies() {
  Global<int> x(10, 1), out(12);
  if (!ran({1, 1}, copied, x.data(), out.data())) return false;
  for (int i = 0; i < 12; ++i)
    if (out[i] != (i < 10 ? x[i] : 0)) return false;
  return true;
}

// Four matrices of 8 x 8, by rows or by columns: element e of matrix m has the number 64 m + e.
__global__ void matrices(bool transposed, uint32_t* out) {
  __shared__ __align__(16) uint16_t held[4 * 64];
  pdl_wait();
  for (int i = 0; i < 8; ++i) held[lane() * 8 + i] = static_cast<uint16_t>(lane() * 8 + i);
  __syncwarp();
  uint32_t loaded[2][2];
  if (transposed) {
    load_matrices_transposed(loaded, held + lane() * 8);
  } else {
    load_matrices(loaded, held + lane() * 8);
  }
  for (int m = 0; m < 4; ++m) out[lane() * 4 + m] = loaded[m / 2][m % 2];
}

bool loads_of_matrices() {
  for (const bool transposed : {false, true}) {
    Global<uint32_t> out(4 * 32);
    if (!ran({1, 32}, matrices, transposed, out.data())) return false;
    for (int i = 0; i < 4 * 32; ++i) {
      const uint32_t m = i % 4, g = i / 16, t = i / 4 % 4;
      const uint32_t first = 64 * m + (transposed ? 16 * t + g : 8 * g + 2 * t), step = transposed ? 8 : 1;
      if (out[i] != (first | (first + step) << 16)) return false;
    }
  }
  return true;
}

const Registered kAll[] = {
    {"loads_of_matrices", loads_of_matrices},
    {"products_of_float16", products<__half>},
    {"products_of_bfloat16", products<__nv_bfloat16>},
    {"asynchronous_copies", copies},
};

}  // namespace
}  // namespace faults
