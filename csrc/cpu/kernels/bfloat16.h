// Conversions between float32 and bfloat16, bit by bit. Internal linkage, as simd.h says.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

static inline __attribute__((always_inline)) float widen(uint16_t b) {
  const uint32_t bits = (uint32_t)b << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

static inline __attribute__((always_inline)) uint16_t narrow(float f) {  // to nearest even; NaN stays a quiet NaN
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace
