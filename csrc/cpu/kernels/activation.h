// Activations and their derivatives on vectors. The codes are those of ghost_ops/backends/activation.py.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace {

template <int L>
GHOST_INLINE typename Vec<L>::T sigmoid(typename Vec<L>::T x) {
  return 1.f / (1.f + Vec<L>::exp(-x));
}

template <int L>
GHOST_INLINE typename Vec<L>::T activate(ghost::Act act, typename Vec<L>::T x, typename Vec<L>::T slope) {
  using V = Vec<L>;
  const typename V::T zero = V::zero();
  switch (act) {
    case ghost::kRelu:
      return V::max(zero, x);
    case ghost::kRelu6:
      return V::min(V::set(6.f), V::max(zero, x));
    case ghost::kLeakyRelu:
    case ghost::kPrelu:
      return x > 0.f ? x : x * slope;
    case ghost::kSilu:
      return x * sigmoid<L>(x);
    case ghost::kHardSwish:
      return x * V::min(V::set(6.f), V::max(zero, x + 3.f)) / 6.f;
    default:
      return x;
  }
}

// grad times the derivative at x; where the derivative is 0 the gradient is dropped, NaN and all, as PyTorch does
template <int L>
GHOST_INLINE typename Vec<L>::T activate_backward(ghost::Act act, typename Vec<L>::T grad, typename Vec<L>::T x,
                                                  typename Vec<L>::T slope) {
  using V = Vec<L>;
  const typename V::T zero = V::zero();
  switch (act) {
    case ghost::kRelu:
      return x <= 0.f ? zero : grad;
    case ghost::kRelu6:
      return x <= 0.f ? zero : x >= 6.f ? zero : grad;
    case ghost::kLeakyRelu:
    case ghost::kPrelu:
      return x > 0.f ? grad : grad * slope;
    case ghost::kSilu: {
      const typename V::T s = sigmoid<L>(x);
      return grad * (s * (1.f + x * (1.f - s)));
    }
    case ghost::kHardSwish:
      return x <= -3.f ? zero : x < 3.f ? grad * (x * (1.f / 3.f) + 0.5f) : grad;
    default:
      return grad;
  }
}

}  // namespace
