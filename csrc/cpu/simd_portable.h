// The vector operations in plain C++: their definition, and the version for unknown instruction sets.
#pragma once

#include <cmath>

namespace adept::portable {

struct F32x16 {
  float lane[16];
};

struct I32x16 {
  int32_t lane[16];
};

struct U8x64 {
  uint8_t byte[64];
};

inline F32x16 broadcast(float value) {
  F32x16 out;
  for (float& lane : out.lane) lane = value;
  return out;
}

inline F32x16 load(const float* from) {
  F32x16 out;
  std::memcpy(out.lane, from, sizeof out);
  return out;
}

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Shifts the half's exponent to the bits of a float's; the product with 2^112 is right for subnormals too.
inline float widen(Half value) {
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  float out;
  std::memcpy(&out, &magnitude, sizeof out);
  out *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &out, sizeof bits);
  if (magnitude >= 0x0f800000u) bits = magnitude | 0x7f800000u;  // infinities and NaNs
  bits |= uint32_t(value.bits & 0x8000) << 16;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline F32x16 load(const Half* from) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = widen(from[i]);
  return out;
}

inline F32x16 load(const BFloat16* from) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = widen(from[i]);
  return out;
}

// The first `count` (0 to 16) elements, zeros after them; nothing past them is read.
template <class T>
inline F32x16 load_first(const T* from, int count) {
  F32x16 out = broadcast(0.0f);
  for (int i = 0; i < count; ++i) out.lane[i] = widen(from[i]);
  return out;
}

inline void store(float* to, F32x16 value) { std::memcpy(to, value.lane, sizeof value); }

inline void store_first(float* to, F32x16 value, int count) {
  std::memcpy(to, value.lane, size_t(count) * sizeof(float));
}

inline uint16_t narrow_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: a subnormal half, rounded by adding 0.5 in float
    float small;
    std::memcpy(&small, &magnitude, sizeof small);
    small += 0.5f;
    std::memcpy(&bits, &small, sizeof bits);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

inline uint16_t narrow_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rounded to nearest, ties to even.
inline void store_first(Half* to, F32x16 value, int count) {
  for (int i = 0; i < count; ++i) to[i].bits = narrow_to_half(value.lane[i]);
}

inline void store_first(BFloat16* to, F32x16 value, int count) {
  for (int i = 0; i < count; ++i) to[i].bits = narrow_to_bfloat16(value.lane[i]);
}

inline F32x16 add(F32x16 a, F32x16 b) {
  for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
  return a;
}

inline F32x16 sub(F32x16 a, F32x16 b) {
  for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
  return a;
}

inline F32x16 mul(F32x16 a, F32x16 b) {
  for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
  return a;
}

// a * b + c; whether it rounds once depends on the machine.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
#ifdef __FP_FAST_FMAF
  for (int i = 0; i < 16; ++i) c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
#else
  for (int i = 0; i < 16; ++i) c.lane[i] += a.lane[i] * b.lane[i];
#endif
  return c;
}

// b if either is NaN.
inline F32x16 max(F32x16 a, F32x16 b) {
  for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

inline F32x16 abs(F32x16 a) {
  for (float& lane : a.lane) lane = std::fabs(lane);
  return a;
}

// To the nearest integer, ties to even.
inline F32x16 round(F32x16 a) {
  for (float& lane : a.lane) lane = std::nearbyintf(lane);
  return a;
}

// value * 2^exponent, for whole exponents from -126 to 0 and values near 1.
inline F32x16 scale_by_power_of_two(F32x16 value, F32x16 exponent) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = uint32_t(int32_t(exponent.lane[i]) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    value.lane[i] *= power;
  }
  return value;
}

// `value`, or 0 in lanes with a < b.
inline F32x16 zero_where_less(F32x16 a, F32x16 b, F32x16 value) {
  for (int i = 0; i < 16; ++i)
    if (a.lane[i] < b.lane[i]) value.lane[i] = 0;
  return value;
}

inline float sum(F32x16 a) {
  float width[16];
  std::memcpy(width, a.lane, sizeof width);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) width[i] += width[i + half];
  return width[0];
}

// Lane i: the sum of the lanes of rows[i].
inline F32x16 sums_of(const F32x16 (&rows)[16]) {
  float sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = sum(rows[i]);
  return load(sums);
}

inline float largest(F32x16 a) {
  float out = a.lane[0];
  for (float lane : a.lane) out = lane > out ? lane : out;
  return out;
}

// One bit for each lane: whether it is not 0 (a NaN is not).
inline uint32_t nonzero_lanes(F32x16 a) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t(a.lane[i] != 0) << i;
  return mask;
}

// from[indices[0]], from[indices[1]], …
inline F32x16 gather(const float* from, const int32_t* indices) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = from[indices[i]];
  return out;
}

// Writes first + lane for each set bit, contiguously, and maybe other values, 16 in all. Returns the number of bits.
inline int store_selected(int32_t* to, int32_t first, uint32_t lanes) {
  int count = 0;
  for (; lanes; lanes &= lanes - 1) to[count++] = first + __builtin_ctz(lanes);
  return count;
}

inline I32x16 zero_i32() { return {}; }

inline I32x16 broadcast(int32_t value) {
  I32x16 out;
  for (int32_t& lane : out.lane) lane = value;
  return out;
}

inline I32x16 load(const int32_t* from) {
  I32x16 out;
  std::memcpy(out.lane, from, sizeof out);
  return out;
}

// 16 bytes, each to a lane.
inline I32x16 load_int8(const void* from) {
  int8_t bytes[16];
  std::memcpy(bytes, from, sizeof bytes);
  I32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = bytes[i];
  return out;
}

inline void store(int32_t* to, I32x16 value) { std::memcpy(to, value.lane, sizeof value); }

// Wraps around like the instructions of other sets; signed sums may not overflow in C++.
inline I32x16 add(I32x16 a, I32x16 b) {
  for (int i = 0; i < 16; ++i) a.lane[i] = int32_t(uint32_t(a.lane[i]) + uint32_t(b.lane[i]));
  return a;
}

inline I32x16 shift_left_8(I32x16 a) {
  for (int32_t& lane : a.lane) lane *= 256;
  return a;
}

inline F32x16 to_float(I32x16 a) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = float(a.lane[i]);
  return out;
}

// To the nearest integer, ties to even; NaN and values out of range become -2^31.
inline I32x16 to_int(F32x16 a) {
  I32x16 out;
  for (int i = 0; i < 16; ++i)
    out.lane[i] = std::fabs(a.lane[i]) < 0x1p31f ? int32_t(std::nearbyintf(a.lane[i])) : INT32_MIN;
  return out;
}

// Arithmetic: the sign is kept.
inline I32x16 shift_right_8(I32x16 a) {
  for (int32_t& lane : a.lane) lane >>= 8;
  return a;
}

// The lowest byte of each lane.
inline void store_bytes(void* to, I32x16 value) {
  uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = uint8_t(value.lane[i]);
  std::memcpy(to, bytes, sizeof bytes);
}

// Lane by lane, the lowest bytes of four vectors, the first vector's lowest.
inline I32x16 pack_bytes(const I32x16 (&values)[4]) {
  I32x16 out;
  for (int i = 0; i < 16; ++i)
    out.lane[i] = int32_t(uint32_t(values[0].lane[i] & 255) | uint32_t(values[1].lane[i] & 255) << 8 |
                          uint32_t(values[2].lane[i] & 255) << 16 | uint32_t(values[3].lane[i]) << 24);
  return out;
}

inline U8x64 load_bytes(const void* from) {
  U8x64 out;
  std::memcpy(out.byte, from, sizeof out);
  return out;
}

// Signed bytes plus 128, as unsigned bytes.
inline U8x64 offset_by_128(U8x64 a) {
  for (uint8_t& byte : a.byte) byte ^= 0x80;
  return a;
}

inline U8x64 low_nibbles(U8x64 a) {
  for (uint8_t& byte : a.byte) byte &= 15;
  return a;
}

inline U8x64 high_nibbles(U8x64 a) {
  for (uint8_t& byte : a.byte) byte >>= 4;
  return a;
}

// Four bytes, repeated 16 times.
inline U8x64 broadcast4(const void* from) {
  U8x64 out;
  for (int i = 0; i < 16; ++i) std::memcpy(out.byte + 4 * i, from, 4);
  return out;
}

// Lane i grows by the sum over b of a.byte[4i + b], unsigned, times b.byte[4i + b], signed.
inline I32x16 dot4(I32x16 sum, U8x64 a, U8x64 b) {
  for (int i = 0; i < 16; ++i)
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum.lane[i] += int32_t(a.byte[j]) * int8_t(b.byte[j]);
  return sum;
}

// As dot4, for a below 128.
inline I32x16 dot4_small(I32x16 sum, U8x64 a, U8x64 b) { return dot4(sum, a, b); }

// Four rows of 64 bytes to four vectors whose lanes hold one byte of each row:
// out[i], lane 4L + j, byte b = rows[b], byte 16L + 4i + j.
inline void interleave4(U8x64 rows[4]) {
  U8x64 out[4];
  for (int i = 0; i < 4; ++i)
    for (int lane = 0; lane < 16; ++lane)
      for (int b = 0; b < 4; ++b) out[i].byte[4 * lane + b] = rows[b].byte[16 * (lane / 4) + 4 * i + lane % 4];
  std::memcpy(rows, out, sizeof out);
}

}  // namespace adept::portable
