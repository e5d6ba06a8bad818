// Memory filled with numbers that depend on their place and a seed alone, so that others can compute them too.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <vector>

#include "device.h"

namespace adept::bench {

// hash(i, seed) mixes both; unit = (hash >> 16) / 2^15 - 1, from -1 to below 1. i counts within 32 bits.
uint32_t hash_of(uint32_t i, uint32_t seed);

// mean + size · unit
void fill(const Buffer<float>& to, float mean, float size, uint32_t seed);
void fill(const Buffer<__half>& to, float mean, float size, uint32_t seed);
void fill(__half* to, int64_t count, float mean, float size, uint32_t seed);

// hash >> 24: two weights in 4 bits
void fill_bytes(const Buffer<uint8_t>& to, uint32_t seed);

// Sign, and magnitudes from 0.25 to 0.9375: bits (hash >> 24 & 0x80) | (0x28 + (hash >> 16 & 15)) of e4m3.
void fill_float8(const Buffer<uint8_t>& to, uint32_t seed);

// Which of `count` are among the `chosen` first of a permutation: exactly so many, anywhere.
std::vector<bool> choose(int64_t count, int64_t chosen, uint32_t seed);

}  // namespace adept::bench
