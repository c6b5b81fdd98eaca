// The activations of ghost_ops/activations.inc and their derivatives on vectors.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace {

/// Definitions over vectors of L floats; what they call is what the list says that every language has.
template <int L>
struct Activation {
  using V = Vec<L>;
  using T = typename V::T;
  using I = typename V::I;

  GHOST_INLINE T exp(T z) { return V::exp(z); }
  GHOST_INLINE T expm1(T z) { return V::expm1(z); }
  GHOST_INLINE T erf(T z) { return V::erf(z); }
  GHOST_INLINE T tanh(T z) { return V::tanh(z); }
#if defined(__AVX512F__) && defined(__AVX512VL__)
  GHOST_INLINE T reciprocal14(T x) {
    if constexpr (L == 16) return (T)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)x);
    if constexpr (L == 8) return (T)_mm256_maskz_rcp14_ps((__mmask8)-1, (__m256)x);
    if constexpr (L == 4) return (T)_mm_maskz_rcp14_ps((__mmask8)-1, (__m128)x);
  }
#endif
  GHOST_INLINE T sigmoid(T z) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
    // A division takes as long as all the rest. Of t = e^-|z| the divisor is between 1 and 2, where an estimate of its
    // reciprocal to 14 bits and a Newton step are as good: 1 / (1 + t), or t / (1 + t) where z is negative.
    const T t = exp(-V::abs(z)), divisor = 1.f + t, guess = reciprocal14(divisor);
    const T quotient = V::fma(V::fma(-divisor, guess, V::set(1.f)), guess, guess);
    return z < 0.f ? quotient * t : quotient;
#else
    return 1.f / (1.f + exp(-z));
#endif
  }
  GHOST_INLINE T at_least(T z, float bound) { return V::max(V::set(bound), z); }
  GHOST_INLINE T at_most(T z, float bound) { return V::min(V::set(bound), z); }
  GHOST_INLINE T where(I condition, T yes, T no) { return condition ? yes : no; }
  GHOST_INLINE T where(I condition, float yes, T no) { return where(condition, V::set(yes), no); }
  GHOST_INLINE T where(I condition, T yes, float no) { return where(condition, yes, V::set(no)); }

#define GHOST_FUNCTION(name, value) \
  GHOST_INLINE T name([[maybe_unused]] T z) { return value; }
#include "activations.inc"

  GHOST_INLINE T value(ghost::Act act, T z, [[maybe_unused]] T slope) {
    switch (act) {
#define GHOST_ACTIVATION(code, name, parameter, value, backward) \
  case ghost::act_##name:                                        \
    return value;
#include "activations.inc"
      default:
        return z;
    }
  }

  GHOST_INLINE T backward(ghost::Act act, T grad, [[maybe_unused]] T z, [[maybe_unused]] T slope) {
    switch (act) {
#define GHOST_ACTIVATION(code, name, parameter, value, backward) \
  case ghost::act_##name:                                        \
    return backward;
#include "activations.inc"
      default:
        return grad;
    }
  }
};

}  // namespace
