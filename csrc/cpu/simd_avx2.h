// The vector operations of simd_portable.h in AVX2, FMA and F16C: two registers a vector.
#pragma once

#include <immintrin.h>

namespace adept::ADEPT_ISA {

struct F32x16 {
  __m256 lower, upper;
};

struct I32x16 {
  __m256i lower, upper;
};

struct U8x64 {
  __m256i lower, upper;
};

inline F32x16 broadcast(float value) {
  const __m256 v = _mm256_set1_ps(value);
  return {v, v};
}

inline F32x16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }

inline __m128i load_16_bytes(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

inline F32x16 load(const Half* from) {
  return {_mm256_cvtph_ps(load_16_bytes(from)), _mm256_cvtph_ps(load_16_bytes(from + 8))};
}

inline __m256 widen_bfloat16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline F32x16 load(const BFloat16* from) {
  return {widen_bfloat16(load_16_bytes(from)), widen_bfloat16(load_16_bytes(from + 8))};
}

template <class T>
inline F32x16 load_first(const T* from, int count) {
  T whole[kLanes] = {};
  std::memcpy(whole, from, size_t(count) * sizeof(T));
  return load(whole);
}

inline void store(float* to, F32x16 value) {
  _mm256_storeu_ps(to, value.lower);
  _mm256_storeu_ps(to + 8, value.upper);
}

inline void store_first(float* to, F32x16 value, int count) {
  float whole[kLanes];
  store(whole, value);
  std::memcpy(to, whole, size_t(count) * sizeof(float));
}

inline void store_first(Half* to, F32x16 value, int count) {
  const __m128i halves[2] = {_mm256_cvtps_ph(value.lower, _MM_FROUND_TO_NEAREST_INT),
                             _mm256_cvtps_ph(value.upper, _MM_FROUND_TO_NEAREST_INT)};
  std::memcpy(to, halves, size_t(count) * sizeof(Half));
}

inline __m256i round_to_bfloat16(__m256 value) {  // the result in the lower half of each lane
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

inline void store_first(BFloat16* to, F32x16 value, int count) {
  const __m256i packed = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(round_to_bfloat16(value.lower), round_to_bfloat16(value.upper)), 0xd8);
  std::memcpy(to, &packed, size_t(count) * sizeof(BFloat16));
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lower, b.lower), _mm256_add_ps(a.upper, b.upper)}; }

inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lower, b.lower), _mm256_sub_ps(a.upper, b.upper)}; }

inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lower, b.lower), _mm256_mul_ps(a.upper, b.upper)}; }

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lower, b.lower, c.lower), _mm256_fmadd_ps(a.upper, b.upper, c.upper)};
}

inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lower, b.lower), _mm256_max_ps(a.upper, b.upper)}; }

inline F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lower), _mm256_andnot_ps(sign, a.upper)};
}

inline F32x16 round(F32x16 a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lower, mode), _mm256_round_ps(a.upper, mode)};
}

inline __m256 power_of_two(__m256 exponent) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

inline F32x16 scale_by_power_of_two(F32x16 value, F32x16 exponent) {
  return mul(value, {power_of_two(exponent.lower), power_of_two(exponent.upper)});
}

inline F32x16 zero_where_less(F32x16 a, F32x16 b, F32x16 value) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(a.lower, b.lower, _CMP_LT_OQ), value.lower),
          _mm256_andnot_ps(_mm256_cmp_ps(a.upper, b.upper, _CMP_LT_OQ), value.upper)};
}

inline float sum(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lower, a.upper);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Lane i: the sum of the lanes of rows[i].
inline F32x16 sums_of(const F32x16 (&rows)[16]) {
  float sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = sum(rows[i]);
  return load(sums);
}

inline float largest(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lower, a.upper);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline uint32_t nonzero_lanes(F32x16 a) {
  const __m256 zero = _mm256_setzero_ps();
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.lower, zero, _CMP_NEQ_UQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.upper, zero, _CMP_NEQ_UQ))) << 8;
}

inline F32x16 gather(const float* from, const int32_t* indices) {
  const auto* halves = reinterpret_cast<const __m256i*>(indices);
  return {_mm256_i32gather_ps(from, _mm256_loadu_si256(halves), sizeof(float)),
          _mm256_i32gather_ps(from, _mm256_loadu_si256(halves + 1), sizeof(float))};
}

inline int store_selected(int32_t* to, int32_t first, uint32_t lanes) {
  int count = 0;
  for (; lanes; lanes &= lanes - 1) to[count++] = first + __builtin_ctz(lanes);
  return count;
}

inline I32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

inline I32x16 broadcast(int32_t value) {
  const __m256i v = _mm256_set1_epi32(value);
  return {v, v};
}

inline I32x16 load(const int32_t* from) {
  const auto* halves = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}

inline I32x16 load_int8(const void* from) {
  const __m128i bytes = load_16_bytes(from);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}

inline void store(int32_t* to, I32x16 value) {
  auto* halves = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(halves, value.lower);
  _mm256_storeu_si256(halves + 1, value.upper);
}

inline I32x16 add(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lower, b.lower), _mm256_add_epi32(a.upper, b.upper)};
}

inline I32x16 shift_left_8(I32x16 a) { return {_mm256_slli_epi32(a.lower, 8), _mm256_slli_epi32(a.upper, 8)}; }

inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lower), _mm256_cvtepi32_ps(a.upper)}; }
inline I32x16 to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lower), _mm256_cvtps_epi32(a.upper)}; }

inline I32x16 shift_right_8(I32x16 a) { return {_mm256_srai_epi32(a.lower, 8), _mm256_srai_epi32(a.upper, 8)}; }

inline void store_bytes(void* to, I32x16 value) {
  const __m256i mask = _mm256_set1_epi32(255);
  __m256i words = _mm256_packus_epi32(_mm256_and_si256(value.lower, mask), _mm256_and_si256(value.upper, mask));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(static_cast<__m128i*>(to), bytes);
}

inline __m256i pack_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i mask = _mm256_set1_epi32(255);
  const __m256i lower = _mm256_or_si256(_mm256_and_si256(a, mask), _mm256_slli_epi32(_mm256_and_si256(b, mask), 8));
  const __m256i upper = _mm256_or_si256(_mm256_and_si256(c, mask), _mm256_slli_epi32(_mm256_and_si256(d, mask), 8));
  return _mm256_or_si256(lower, _mm256_slli_epi32(upper, 16));
}

inline I32x16 pack_bytes(const I32x16 (&values)[4]) {
  return {pack_bytes(values[0].lower, values[1].lower, values[2].lower, values[3].lower),
          pack_bytes(values[0].upper, values[1].upper, values[2].upper, values[3].upper)};
}

inline U8x64 load_bytes(const void* from) {
  const auto* halves = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}

inline U8x64 offset_by_128(U8x64 a) {
  const __m256i bit = _mm256_set1_epi8(char(0x80));
  return {_mm256_xor_si256(a.lower, bit), _mm256_xor_si256(a.upper, bit)};
}

inline U8x64 low_nibbles(U8x64 a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lower, mask), _mm256_and_si256(a.upper, mask)};
}

inline U8x64 high_nibbles(U8x64 a) {
  return low_nibbles({_mm256_srli_epi16(a.lower, 4), _mm256_srli_epi16(a.upper, 4)});
}

inline U8x64 broadcast4(const void* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  const __m256i v = _mm256_set1_epi32(four);
  return {v, v};
}

// Even and odd bytes separately: a sum of two products of bytes may not fit in 16 bits.
inline __m256i dot4(__m256i sum, __m256i a, __m256i b) {
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

inline I32x16 dot4(I32x16 sum, U8x64 a, U8x64 b) {
  return {dot4(sum.lower, a.lower, b.lower), dot4(sum.upper, a.upper, b.upper)};
}

inline __m256i dot4_small(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}

inline I32x16 dot4_small(I32x16 sum, U8x64 a, U8x64 b) {
  return {dot4_small(sum.lower, a.lower, b.lower), dot4_small(sum.upper, a.upper, b.upper)};
}

inline void interleave4(__m256i& a, __m256i& b, __m256i& c, __m256i& d) {
  const __m256i low_ab = _mm256_unpacklo_epi8(a, b), high_ab = _mm256_unpackhi_epi8(a, b);
  const __m256i low_cd = _mm256_unpacklo_epi8(c, d), high_cd = _mm256_unpackhi_epi8(c, d);
  a = _mm256_unpacklo_epi16(low_ab, low_cd);
  b = _mm256_unpackhi_epi16(low_ab, low_cd);
  c = _mm256_unpacklo_epi16(high_ab, high_cd);
  d = _mm256_unpackhi_epi16(high_ab, high_cd);
}

inline void interleave4(U8x64 rows[4]) {
  interleave4(rows[0].lower, rows[1].lower, rows[2].lower, rows[3].lower);
  interleave4(rows[0].upper, rows[1].upper, rows[2].upper, rows[3].upper);
}

}  // namespace adept::ADEPT_ISA
