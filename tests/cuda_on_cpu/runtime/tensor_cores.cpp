#include "tensor_cores.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <vector>

#include "memory.h"
#include "races.h"

namespace cuda_on_cpu {
namespace {

constexpr int kM = 16, kN = 8, kK = 16;

struct Multiplied {
  Sixteen format;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// Every float16 as a float: software takes long to convert one.
std::vector<float> all_float16() {
  std::vector<float> all(65536);
  for (unsigned bits = 0; bits < all.size(); ++bits) {
    all[bits] = __half2float(__half(__half_raw{static_cast<unsigned short>(bits)}));
  }
  return all;
}

const std::vector<float> kFloat16Values = all_float16();

float value_of(Sixteen format, uint32_t pair, int which) {
  const uint32_t bits = which == 0 ? pair & 0xffff : pair >> 16;
  if (format == Sixteen::kFloat16) return kFloat16Values[bits];
  const uint32_t wide = bits << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

void combine_multiplied(void* const* lanes, unsigned) {
  float a[kM][kK], b[kK][kN], d[kM][kN] = {};
  const Sixteen format = static_cast<const Multiplied*>(lanes[0])->format;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto* part = static_cast<const Multiplied*>(lanes[lane]);
    if (part->format != format) fail("lanes of a warp multiply in different formats");
    const int group = lane / 4, within = lane % 4;
    for (int i = 0; i < 8; ++i) {
      a[group + i / 2 % 2 * 8][within * 2 + i % 2 + i / 4 * 8] = value_of(format, part->a[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) b[within * 2 + i % 2 + i / 2 * 8][group] = value_of(format, part->b[i / 2], i % 2);
  }
  for (int row = 0; row < kM; ++row) {
    for (int k = 0; k < kK; ++k) {
      for (int column = 0; column < kN; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    float* held = static_cast<Multiplied*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) held[i] += d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

constexpr size_t kRowBytes = 16;

struct Loaded {
  uint32_t* registers;
  int count;
  bool transposed;
  const void* row;
};

void combine_loaded(void* const* lanes, unsigned) {
  const Loaded first = *static_cast<const Loaded*>(lanes[0]);
  uint16_t matrices[4][8][8];
  for (int i = 0; i < first.count * 8; ++i) {
    std::memcpy(matrices[i / 8][i % 8], static_cast<const Loaded*>(lanes[i])->row, kRowBytes);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto* loaded = static_cast<const Loaded*>(lanes[lane]);
    if (loaded->count != first.count || loaded->transposed != first.transposed) {
      fail("lanes of a warp load different kinds of matrices");
    }
    const int major = lane / 4, minor = lane % 4 * 2;
    for (int m = 0; m < first.count; ++m) {
      const auto& matrix = matrices[m];
      const uint32_t low = first.transposed ? matrix[minor][major] : matrix[major][minor];
      const uint32_t high = first.transposed ? matrix[minor + 1][major] : matrix[major][minor + 1];
      loaded->registers[m] = high << 16 | low;
    }
  }
}

}  // namespace

void multiply_add(Sixteen format, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiplied part{format, d, a, b};
  meet_warp(Meeting::kMultiply, kEveryLane, &part, combine_multiplied);
}

void load_matrices(uint32_t* registers, int count, bool transposed, const void* row) {
  if (current->lane < count * 8) {
    check_aligned(row, kRowBytes);
    if (!is_shared(row)) fail("a matrix is loaded from what is not shared memory");
    races::read(row, kRowBytes);
  }
  Loaded part{registers, count, transposed, row};
  meet_warp(Meeting::kLoad, kEveryLane, &part, combine_loaded);
}

}  // namespace cuda_on_cpu
