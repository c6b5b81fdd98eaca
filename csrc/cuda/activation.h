// The activations and gates of ghost_ops/activations.inc, forward, for a thread of a kernel.
#pragma once
#include "activations.h"
#include "device.h"

namespace ghost::cuda {
namespace scalar {

GHOST_DEVICE float exp(float z) { return exponential(z); }
GHOST_DEVICE float expm1(float z) { return ::expm1f(z); }
GHOST_DEVICE float erf(float z) { return ::erff(z); }
GHOST_DEVICE float tanh(float z) { return ::tanhf(z); }
GHOST_DEVICE float sigmoid(float z) { return 1.f / (1.f + exp(-z)); }
GHOST_DEVICE float at_least(float z, float bound) { return z < bound ? bound : z; }
GHOST_DEVICE float at_most(float z, float bound) { return z > bound ? bound : z; }
GHOST_DEVICE float where(bool condition, float yes, float no) { return condition ? yes : no; }

#define GHOST_FUNCTION(name, value) \
  GHOST_DEVICE float name(float z) { return value; }
#include "activations.inc"

}  // namespace scalar

GHOST_DEVICE float activation(float z, int act, [[maybe_unused]] float slope) {
  using namespace scalar;
  switch (act) {
#define GHOST_ACTIVATION(code, name, parameter, value, backward) \
  case code:                                                     \
    return value;
#include "activations.inc"
    default:
      return z;
  }
}

}  // namespace ghost::cuda
