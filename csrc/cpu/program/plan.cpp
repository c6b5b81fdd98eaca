#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ghost {
namespace {

/// The cut that leaves the busiest thread the least; columns where both are equal, since then each thread reads only
/// its part of the weights.
Cut cut_of(const Step& t, int64_t h, int64_t columns, int64_t shares) {
  if (t.kind != Kind::ghost && t.kind != Kind::depthwise) return Cut::rows;
  if (t.multiplier() > 1) return Cut::rows;
  const auto busiest = [&](int64_t units) {
    return static_cast<double>((units + shares - 1) / shares) / static_cast<double>(units);
  };
  // the rows at a border between two shares are finished later, from memory: a small cost a share
  const double halo = 0.02 * static_cast<double>(t.kernel / 2);
  return busiest(padded(columns) / kPanel) <= busiest(h) + halo && h * h <= 400 ? Cut::columns : Cut::rows;
}

int64_t phases_of(const Step& t, Cut cut, int64_t shares) {
  if (shares == 1) return 1;
  switch (t.kind) {
    case Kind::ghost:
      return t.scales() + (cut == Cut::columns ? 1 : 2 + t.squeeze);
    case Kind::depthwise:
      return cut == Cut::columns ? 1 : 1 + t.squeeze;
    case Kind::excite:
      return 2;
    default:
      return 1;
  }
}

constexpr int64_t kSmallMap = 256;  // pixels

/// What a step needs while it runs and only one step may have: of all that are under way, the first that asks.
std::vector<bool> scratch_of(const Step& t) {
  return {t.residual >= 0, t.multiplier() > 1, t.scales(), t.squeeze};  // z, expanded, scaled, sums
}

/// Steps in a row may run interleaved, a few rows at a time, as long as none overwrites a slot that another one reads
/// or writes, no two work in the same scratch, and none needs a whole map.
std::vector<int64_t> ends_of_runs(const Program& p, int64_t end) {
  std::vector<int64_t> ends;
  std::vector<bool> slots(p.slots), scratch(4);
  const auto close = [&](int64_t at) {
    if (at > 0 && (ends.empty() || ends.back() < at)) ends.push_back(at);
    slots.assign(p.slots, false);
    scratch.assign(4, false);
  };
  for (int64_t i = 0; i < end; i++) {
    const Step& t = p.steps[i];
    if (t.out < 0) {
      close(i);
      close(i + 1);
      continue;
    }
    const std::vector<bool> wanted = scratch_of(t);
    bool taken = slots[t.out];
    for (size_t k = 0; k < wanted.size(); k++) taken = taken || (wanted[k] && scratch[k]);
    if (taken) close(i);
    for (size_t k = 0; k < wanted.size(); k++) scratch[k] = scratch[k] || wanted[k];
    slots[t.out] = true;
    for (int64_t source : {t.in, t.residual})
      if (source >= 0) slots[p.steps[source].out] = true;
  }
  close(end);
  return ends;
}

[[noreturn]] void fail_to_fit(int64_t h, int64_t w) {
  throw std::runtime_error("ghost_ops.program: x: expected a map that its kernels fit on, got " + std::to_string(h) +
                           "x" + std::to_string(w));
}

}  // namespace

Plan::Plan(const Program& p, int64_t h, int64_t w, int64_t shares) : shares(shares), workspace{} {
  if (h < 1 || w < 1) fail_to_fit(h, w);
  std::vector<int64_t> floats(p.steps.size());  // of what each step writes
  int64_t z = 0, expanded = 0, zeros = 0, mean = 0, hidden = 0, scaled = 0, sums = 0, rows = 0;
  const auto grow = [](int64_t& most, int64_t floats) { most = std::max(most, floats); };
  for (const Step& t : p.steps) {
    Sized s{h, w, h, w, Cut::rows, 1};
    if (t.in >= 0) s.in_h = s.h = steps[t.in].h, s.in_w = s.w = steps[t.in].w;
    if (t.kind == Kind::conv || t.kind == Kind::depthwise) {
      const int64_t around = t.kind == Kind::conv ? 2 * t.padding : t.kernel - 1;
      s.h = (s.in_h + around - t.kernel) / t.stride + 1, s.w = (s.in_w + around - t.kernel) / t.stride + 1;
      if (s.in_h + around < t.kernel || s.in_w + around < t.kernel) fail_to_fit(h, w);
    }
    const int64_t pixels = s.h * s.w, columns = t.kind == Kind::depthwise ? t.in_channels.pixel() : t.primary;
    s.cut = cut_of(t, s.h, columns, shares);
    s.phases = phases_of(t, s.cut, shares);
    if (t.out >= 0) floats[steps.size()] = pixels * t.out_channels.pixel();
    switch (t.kind) {
      case Kind::conv:
        grow(rows, ((kConvRows - 1) * t.stride + t.kernel) * (s.in_w + 2 * t.padding) * t.channels);
        flops += 2 * pixels * t.primary * t.channels * t.kernel * t.kernel;
        break;
      case Kind::ghost:
        if (t.residual >= 0) {
          if (steps[t.residual].h != s.h || steps[t.residual].w != s.w)
            throw std::runtime_error("ghost_ops.program: steps: expected a residual of the output's size");
          grow(z, pixels * by_eight(t.primary));
        }
        if (t.multiplier() > 1) grow(expanded, pixels * by_eight(t.kept()));
        if (t.scales()) grow(scaled, panel_floats(t.primary, t.channels));
        grow(zeros, s.w * std::max(by_eight(t.kept()), t.out_channels.pixel()));
        flops += 2 * pixels * (t.primary * t.channels + t.kept() * t.kernel * t.kernel);
        break;
      case Kind::depthwise:
        grow(zeros, s.in_w * t.in_channels.pixel());
        flops += 2 * pixels * t.channels * t.kernel * t.kernel;
        break;
      case Kind::excite:
        grow(hidden, by_eight(t.hidden));
        flops += 4 * t.channels * t.hidden;
        break;
      case Kind::pool:
        grow(features, by_eight(t.channels));
        break;
      case Kind::dense:
        grow(features, by_eight(t.primary));
        flops += 2 * t.channels * t.primary;
        break;
      default:
        break;
    }
    if (t.squeeze) {
      grow(mean, padded(t.out_channels.count()));
      grow(sums, sum_floats(t.kind == Kind::depthwise ? t.out_channels.pixel()
                                                      : std::max(t.out_channels.first, t.out_channels.second)));
    }
    steps.push_back(s);
    if (t.kind == Kind::store) out_h = s.h, out_w = s.w;
  }
  // From the first small map on, up to the end, images go through each step together.
  const int64_t count = static_cast<int64_t>(p.steps.size());
  late = count;
  while (late > 0 && (p.steps[late - 1].out < 0 || steps[late - 1].h * steps[late - 1].w <= kSmallMap)) late--;
  ends = ends_of_runs(p, late);
  own.assign(count, false);
  for (int64_t i = late; i < count; i++) {
    own[i] = true;
    for (int64_t source : {p.steps[i].in, p.steps[i].residual})
      if (source >= 0) own[source] = true;
  }
  Workspace& m = workspace;
  const auto take = [](int64_t& from, int64_t floats) {
    const int64_t here = from;
    from += padded(floats) + 2 * kPad;  // whole vectors are read past a map's last pixel
    return here;
  };
  m.values.assign(count, -1);
  for (const bool mine : {false, true})
    for (int64_t slot = 0; slot < p.slots; slot++) {
      int64_t most = 0;
      for (int64_t i = 0; i < count; i++)
        if (p.steps[i].out == slot && own[i] == mine) most = std::max(most, floats[i]);
      const int64_t at = most ? take(mine ? m.own_floats : m.shared_floats, most) : 0;
      for (int64_t i = 0; i < count; i++)
        if (p.steps[i].out == slot && own[i] == mine) m.values[i] = at;
    }
  m.mean = take(m.own_floats, mean), m.hidden = take(m.own_floats, hidden), m.gate = take(m.own_floats, mean);
  int64_t& shared = m.shared_floats;
  m.z = take(shared, z), m.expanded = take(shared, expanded), m.zeros = take(shared, zeros);
  m.scaled = take(shared, scaled);
  m.half_sums = sums, m.sums_of_share = 2 * sums, m.sums = take(shared, m.sums_of_share * shares);
  m.rows_of_share = padded(rows), m.rows = take(shared, m.rows_of_share * shares);
}

}  // namespace ghost
