// Conversions between float32 and bfloat16, bit by bit, and panels of bfloat16. Internal linkage, as simd.h says.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"

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

// weight (n x k) times scale, one a row or null, in panels of pairs: panel_floats(n, bf16_pairs(k)) of them.
[[maybe_unused]] static void pack_bf16(const float* weight, int64_t n, int64_t k, const float* scale, float* out) {
  const auto rounded = [&](int64_t row, int64_t column) -> uint32_t {
    if (row >= n || column >= k) return 0;
    return narrow(weight[row * k + column] * (scale ? scale[row] : 1.f));
  };
  for (int64_t panel = 0; panel < n; panel += ghost::kPanel) {
    const int64_t width = n - panel <= 8 ? 8 : ghost::kPanel;
    for (int64_t j = 0; j < k; j += 2)
      for (int64_t i = panel; i < panel + width; i++, out++) {
        const uint32_t pair = rounded(i, j) | rounded(i, j + 1) << 16;
        std::memcpy(out, &pair, sizeof pair);
      }
  }
}

}  // namespace
