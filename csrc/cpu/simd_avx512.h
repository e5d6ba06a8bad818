// The vector operations of simd_portable.h in AVX-512 (F, BW, DQ, VL), with VNNI where compiled for it.
#pragma once

#include <immintrin.h>

namespace adept::ADEPT_ISA {

struct F32x16 {
  __m512 v;
};

struct I32x16 {
  __m512i v;
};

struct U8x64 {
  __m512i v;
};

inline __mmask16 first_lanes(int count) { return __mmask16((1u << count) - 1); }

inline F32x16 broadcast(float value) { return {_mm512_set1_ps(value)}; }
inline F32x16 load(const float* from) { return {_mm512_loadu_ps(from)}; }

inline F32x16 load(const Half* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}

inline F32x16 widen_bfloat16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

inline F32x16 load(const BFloat16* from) {
  return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline F32x16 load_first(const float* from, int count) { return {_mm512_maskz_loadu_ps(first_lanes(count), from)}; }

inline F32x16 load_first(const Half* from, int count) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), from))};
}

inline F32x16 load_first(const BFloat16* from, int count) {
  return widen_bfloat16(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}

inline void store(float* to, F32x16 value) { _mm512_storeu_ps(to, value.v); }

inline void store_first(float* to, F32x16 value, int count) { _mm512_mask_storeu_ps(to, first_lanes(count), value.v); }

inline void store_first(Half* to, F32x16 value, int count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void store_first(BFloat16* to, F32x16 value, int count) {
  const __m512i bits = _mm512_castps_si512(value.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(value.v, value.v, _CMP_UNORD_Q);
  const __m512i upper = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
  _mm256_mask_storeu_epi16(to, first_lanes(count), _mm512_cvtepi32_epi16(upper));
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }

inline F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

inline F32x16 scale_by_power_of_two(F32x16 value, F32x16 exponent) { return {_mm512_scalef_ps(value.v, exponent.v)}; }

inline F32x16 zero_where_less(F32x16 a, F32x16 b, F32x16 value) {
  return {_mm512_mask_mov_ps(value.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), _mm512_setzero_ps())};
}

inline float sum(F32x16 a) { return _mm512_reduce_add_ps(a.v); }

// Lane i: the sum of the lanes of rows[i].
inline F32x16 sums_of(const F32x16 (&rows)[16]) {
  __m512 quads[4];  // of rows 4 i to 4 i + 3: in each 128 bits their sums of 4 lanes
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    const __m512 a = rows[4 * i].v, b = rows[4 * i + 1].v, c = rows[4 * i + 2].v, d = rows[4 * i + 3].v;
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    quads[i] = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  }
  const __m512 halves[2] = {
      _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd)),
      _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd))};
  return {_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                        _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd))};
}

inline float largest(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

inline uint32_t nonzero_lanes(F32x16 a) { return _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }

inline F32x16 gather(const float* from, const int32_t* indices) {
  return {_mm512_i32gather_ps(_mm512_loadu_si512(indices), from, sizeof(float))};
}

inline int store_selected(int32_t* to, int32_t first, uint32_t lanes) {
  const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(first),
                                           _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(lanes), numbers));
  return __builtin_popcount(lanes);
}

inline I32x16 zero_i32() { return {_mm512_setzero_si512()}; }
inline I32x16 broadcast(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline I32x16 load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }

inline I32x16 load_int8(const void* from) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)))};
}

inline void store(int32_t* to, I32x16 value) { _mm512_storeu_si512(to, value.v); }
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 shift_left_8(I32x16 a) { return {_mm512_slli_epi32(a.v, 8)}; }
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32x16 to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }

inline I32x16 shift_right_8(I32x16 a) { return {_mm512_srai_epi32(a.v, 8)}; }

inline void store_bytes(void* to, I32x16 value) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(value.v));
}

inline I32x16 pack_bytes(const I32x16 (&values)[4]) {
  const __m512i mask = _mm512_set1_epi32(255);
  const __m512i lower =
      _mm512_or_si512(_mm512_and_si512(values[0].v, mask), _mm512_slli_epi32(_mm512_and_si512(values[1].v, mask), 8));
  const __m512i upper =
      _mm512_or_si512(_mm512_and_si512(values[2].v, mask), _mm512_slli_epi32(_mm512_and_si512(values[3].v, mask), 8));
  return {_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16))};
}

inline U8x64 load_bytes(const void* from) { return {_mm512_loadu_si512(from)}; }
inline U8x64 offset_by_128(U8x64 a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(char(0x80)))}; }
inline U8x64 low_nibbles(U8x64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }

inline U8x64 high_nibbles(U8x64 a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }

inline U8x64 broadcast4(const void* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return {_mm512_set1_epi32(four)};
}

#if defined(__AVX512VNNI__)

// In assembly, because GCC copies the intrinsic's sum between registers and to the stack.
inline I32x16 dot4(I32x16 sum, U8x64 a, U8x64 b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
}

inline I32x16 dot4_small(I32x16 sum, U8x64 a, U8x64 b) { return dot4(sum, a, b); }

#else

// Even and odd bytes separately: a sum of two products of bytes may not fit in 16 bits.
inline I32x16 dot4(I32x16 sum, U8x64 a, U8x64 b) {
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(a.v, _mm512_set1_epi16(0xff)),
                                         _mm512_srai_epi16(_mm512_slli_epi16(b.v, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a.v, 8), _mm512_srai_epi16(b.v, 8));
  return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
}

inline I32x16 dot4_small(I32x16 sum, U8x64 a, U8x64 b) {
  const __m512i pairs = _mm512_maddubs_epi16(a.v, b.v);
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}

#endif

inline void interleave4(U8x64 rows[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(rows[0].v, rows[1].v);
  const __m512i high01 = _mm512_unpackhi_epi8(rows[0].v, rows[1].v);
  const __m512i low23 = _mm512_unpacklo_epi8(rows[2].v, rows[3].v);
  const __m512i high23 = _mm512_unpackhi_epi8(rows[2].v, rows[3].v);
  rows[0].v = _mm512_unpacklo_epi16(low01, low23);
  rows[1].v = _mm512_unpackhi_epi16(low01, low23);
  rows[2].v = _mm512_unpacklo_epi16(high01, high23);
  rows[3].v = _mm512_unpackhi_epi16(high01, high23);
}

}  // namespace adept::ADEPT_ISA
