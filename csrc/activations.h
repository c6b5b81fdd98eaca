// Codes of the activations and gates of ghost_ops/activations.inc.
#pragma once
#include <cstdint>

namespace ghost {

enum SlopeKind { kNoSlope, kNumber, kWeight };

enum Act : int64_t {
#define GHOST_ACTIVATION(code, name, ...) act_##name = code,
#include "activations.inc"
  kActs
};
constexpr Act kNone = act_none, kRelu = act_relu, kPrelu = act_prelu, kLeakyRelu = act_leaky_relu;

enum Gate : int64_t {
#define GHOST_GATE(code, name, activation) gate_##name = code,
#include "activations.inc"
  kGates
};

constexpr SlopeKind slope_kind(int64_t act) {
  switch (act) {
#define GHOST_ACTIVATION(code, name, parameter, ...) \
  case code:                                         \
    return parameter;
#include "activations.inc"
  }
  return kNoSlope;
}

/// The activation that computes a gate.
constexpr Act act_of_gate(int64_t gate) {
  switch (gate) {
#define GHOST_GATE(code, name, activation) \
  case code:                               \
    return act_##activation;
#include "activations.inc"
  }
  return kNone;
}

}  // namespace ghost
