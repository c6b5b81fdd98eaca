// Bytes of global memory that a chain of blocks moves.
#pragma once
#include "chain.h"

namespace ghost::cuda {

/// Bytes of global memory that a computation moves.
struct Traffic {
  int64_t fused, by_module;
};

/// Bytes of a plan, and of the same module by module.
inline Traffic traffic(const std::vector<Block>& blocks, const Plan& plan, int element, int64_t images) {
  Traffic t{};
  int sums = 0;
  for (const Part& part : plan) {
    if (!part.run.excites) t.fused += images * element * moved(part.launch);
    const Block& last = blocks[part.run.last];
    sums = last.hidden && part.run.ends_within ? part.launch.places() : 0;
    t.fused += images * 2 * sums * lanes(last) * 4;
  }
  for (const Block& b : blocks) {
    const int64_t in = int64_t{b.height} * b.width, out = int64_t{out_height(b)} * out_width(b);
    int64_t each = b.window ? int64_t{b.image_channels} * b.image_height * b.image_width : in * b.channels;
    if (!b.primary) {
      each += out * b.kept2;
    } else {
      const int64_t expanded = int64_t{b.primary} * (1 + b.multiplier);
      each += expanded * (b.kernel ? 2 * in + 2 * out : 2 * in) + out * b.kept2;
      if (b.shortcut >= 0) each += (b.shortcut ? in : out) * b.channels;
      if (b.shortcut > 0) each += out * 2 * (b.channels + b.kept2);
    }
    t.by_module += images * element * each;
  }
  return t;
}

}  // namespace ghost::cuda
