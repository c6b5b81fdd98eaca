// Bytes of global memory that a block moves.
#pragma once
#include "plan.h"

namespace ghost::cuda {

/// Bytes of the launches of a plan, halos counted as often as they are read, and of the same module by module.
inline Traffic traffic(const Block& b, const Plan& plan, int element, int64_t images) {
  Traffic t{};
  for (int i = 0; i < plan.launches; i++) {
    const Launch& l = plan.launch[i];
    if (plan.piece[i] == Piece::excite) continue;
    int64_t elements = 0;
    for (int j = 0; j < l.stages; j++) {
      const Stage& g = l.stage[j];
      if (g.kind == Kind::store)
        elements += int64_t{l.height} * l.width * g.lanes * l.chunks * (1 + (g.tensor == kResidual));
      if (g.kind != Kind::load) continue;
      const Map& m = l.map[g.out];
      const auto read = [&](int parts, int part, int limit, int of) {
        int64_t sum = 0;
        for (int p = 0; p < parts; p++) {
          const int from = p * part, to = std::min(from + part, limit);
          sum += std::min(to * m.reach.per + m.reach.after, of) - std::max(from * m.reach.per - m.reach.before, 0);
        }
        return sum;
      };
      elements +=
          read(l.bands, l.band, l.height, m.height) * read(l.strips, l.strip, l.width, m.width) * g.lanes * l.chunks;
    }
    t.fused += images * element * elements;
    if (b.hidden && plan.piece[i] == Piece::expand) t.fused += images * 2 * plan.sums * lanes(b) * 4;
  }
  const int64_t in = int64_t{b.height} * b.width, out = int64_t{out_height(b)} * out_width(b);
  int64_t each = in * b.channels;
  if (!b.primary) {
    each += out * b.kept2;
  } else {
    const int64_t expanded = int64_t{b.primary} * (1 + b.multiplier);
    each += expanded * (b.kernel ? 2 * in + 2 * out : 2 * in) + out * b.kept2;
    if (b.shortcut >= 0) each += (b.shortcut ? in : out) * b.channels;
    if (b.shortcut > 0) each += out * 2 * (b.channels + b.kept2);
  }
  t.by_module = images * element * each;
  return t;
}

}  // namespace ghost::cuda
