// float16 by its bits. For tests.
#pragma once

#include "cuda_runtime_api.h"

struct half {
  uint16_t bits;
};

inline half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  uint32_t bits = sign | (rest << 13) + (rest >= 0x7c00u ? 0x70000000u : 0x38000000u);
  float found;
  if (rest < 0x400u) {  // zero or below the normal numbers
    found = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -found : found;
  }
  std::memcpy(&found, &bits, 4);
  return found;
}

inline half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {0x7fff};
  if (bits >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (bits < 0x38800000u) {  // adding 1/2 leaves the rounding to float32
    float moved;
    std::memcpy(&moved, &bits, 4);
    moved += 0.5f;
    std::memcpy(&bits, &moved, 4);
    return {static_cast<uint16_t>(sign | (bits - 0x3f000000u))};
  }
  bits += 0xc8000fffu + (bits >> 13 & 1u);
  return {static_cast<uint16_t>(sign | bits >> 13)};
}

inline half __hsub(half left, half right) { return __float2half_rn(__half2float(left) - __half2float(right)); }
