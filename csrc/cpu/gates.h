// The gates of squeeze-and-excite, as ghost_ops/backends/activation.py numbers them.
#pragma once
#include <cmath>
#include <cstdint>

namespace ghost {

enum Gate : int64_t { kClamp, kHardSigmoid, kSigmoid, kIdentity, kGates };

inline float sigmoid(float v) { return 1.f / (1.f + std::exp(-v)); }

// Bounds are written so that NaN passes, as in PyTorch.
inline float clip(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

inline float gate_of(int64_t gate, float v) {
  switch (gate) {
    case kClamp:
      return clip(v, 0.f, 1.f);
    case kHardSigmoid:
      return clip(v + 3.f, 0.f, 6.f) / 6.f;
    case kSigmoid:
      return sigmoid(v);
    default:
      return v;
  }
}

}  // namespace ghost
