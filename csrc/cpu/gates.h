// The activations and gates of ghost_ops/activations.inc on single numbers.
#pragma once
#include <cmath>

#include "activations.h"

namespace ghost {
namespace scalar {

using std::erf, std::exp, std::expm1, std::tanh;

inline float sigmoid(float z) { return 1.f / (1.f + std::exp(-z)); }
inline float at_least(float z, float bound) { return z < bound ? bound : z; }
inline float at_most(float z, float bound) { return z > bound ? bound : z; }
inline float where(bool condition, float yes, float no) { return condition ? yes : no; }

#define GHOST_FUNCTION(name, value) \
  inline float name(float z) { return value; }
#include "activations.inc"

}  // namespace scalar

/// An activation without slopes.
inline float act_of(int64_t act, float z) {
  using namespace scalar;
  [[maybe_unused]] constexpr float slope = 0.f;
  switch (act) {
#define GHOST_ACTIVATION(code, name, parameter, value, backward) \
  case act_##name:                                               \
    return value;
#include "activations.inc"
    default:
      return z;
  }
}

/// The gradient of z where that of the activation, which has no slopes, is `grad`.
inline float act_backward(int64_t act, float grad, float z) {
  using namespace scalar;
  [[maybe_unused]] constexpr float slope = 0.f;
  switch (act) {
#define GHOST_ACTIVATION(code, name, parameter, value, backward) \
  case act_##name:                                               \
    return backward;
#include "activations.inc"
    default:
      return grad;
  }
}

inline float gate_of(int64_t gate, float z) { return act_of(act_of_gate(gate), z); }
inline float gate_backward(int64_t gate, float grad, float z) { return act_backward(act_of_gate(gate), grad, z); }

}  // namespace ghost
