// A program: the steps of a net or a block, decoded from the list of integers that the operators take.
//
// The list is written by ghost_ops/backends/steps.py, which says what each number means. All of a program's parameters
// lie in one packed tensor, in the order of the steps; a step's `packed` says where its own begin.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace ghost {

/// Where the channels of a pixel lie: `first` of them, then `second`, each half padded to a multiple of 8.
struct Channels {
  int64_t first = 0, second = 0;
  int64_t count() const { return first + second; }
  int64_t second_at() const { return by_eight(first); }
  int64_t pixel() const { return by_eight(first) + by_eight(second); }
};

/// What is packed of a convolution, and its activation.
struct Conv {
  bool bias = false, norm = false, gamma = false, beta = false, slopes = false;
  double eps = 0, slope = 0;
  Act act = kNone;
  bool has_slopes() const { return slope_kind(act) != kNoSlope; }
};

enum class Kind : int64_t { load, conv, ghost, depthwise, excite, pool, dense, store };

/// One step; what a kind does not have stays 0.
struct Step {
  Kind kind;
  int64_t in = -1, residual = -1;               // the steps whose outputs are read
  int64_t out = -1;                             // the slot that is written
  bool scaled = false;                          // ghost: its input times the excitation
  bool squeeze = false;                         // its output's mean is wanted
  bool by_lanes = false;                        // load: whole vectors of it are read
  int64_t channels = 0, primary = 0, made = 0;  // of its input; its primary channels; the cheap operation's
  int64_t kernel = 1, stride = 1, padding = 0;
  int64_t hidden = 0, gate = 0;  // excite
  Conv first, second;            // the convolutions or layers, in order
  Channels in_channels, out_channels;
  int64_t packed = 0;
  bool raw = false;    // excite: its weights are read where they lie, since one image reads them once
  bool pairs = false;  // the weights of its products are pairs of bfloat16

  int64_t multiplier() const { return made ? made / primary : 0; }
  int64_t kept() const { return out_channels.second; }  // channels of the cheap operation that are computed
  int64_t depth(int64_t k) const { return pairs ? pairs_of(k) : k; }  // rows of a panel
  /// Whether the excitation goes into a copy of the weights; pairs are scaled on their way.
  bool scales() const { return scaled && !pairs; }
};

/// Floats from the beginning of one packed piece to the next.
constexpr int64_t aligned(int64_t floats) { return padded(floats); }

/// The pieces of a step in the packed tensor, relative to its beginning.
struct Pieces {
  int64_t weight, bias, slopes, second_weight, second_bias, second_slopes, end;
};
Pieces pieces(const Step& step);

/// The weights of the excitations that are not packed, by step.
struct RawLayers {
  const float *reduce = nullptr, *expand = nullptr;
};

struct Program {
  std::vector<Step> steps;
  int64_t slots = 0;
  int64_t packed_floats = 0;
  int64_t in_channels = 0;
  bool returns_features = false;  // N x C, not a map
  bool pairs = false;             // the precision: weights of products are pairs of bfloat16, not float32

  /// Raises where the list is none that ghost_ops wrote. `raw`: parameters are packed for this one call.
  static Program parse(const std::vector<int64_t>& list, bool raw = false);
};

}  // namespace ghost
