#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/halves.h"
#include "storage.h"
#include "walk.h"

namespace ghost {
namespace {

// What a cut costs, in ns: a FLOP, a float that another thread wrote, a weight that others read too, and the finishing
// of rows at a border between two shares, from memory, as a part of the whole.
constexpr double kProductFlop = 0.007, kDepthwiseFlop = 0.02, kOthersFloat = 1.4, kSharedWeight = 0.12, kBorder = 0.02;

/// The cut whose busiest thread is done first. By rows each thread reads all weights; by columns all channels of its
/// input, a good part of which lies in the caches of others. A depthwise convolution goes on where its input was made.
Cut cut_of(const Step& t, const Sized& s, int64_t columns, int64_t shares, Cut input) {
  if (shares == 1 || (t.kind != Kind::ghost && t.kind != Kind::depthwise) || t.multiplier() > 1) return Cut::rows;
  const auto busiest = [&](int64_t units) {
    return static_cast<double>((units + shares - 1) / shares) / static_cast<double>(units);
  };
  const double taps = static_cast<double>(t.kernel * t.kernel), pixels = static_cast<double>(s.h * s.w);
  const double channels = static_cast<double>(t.channels), others = 1.0 - 1.0 / static_cast<double>(shares);
  const bool product = t.kind == Kind::ghost;
  const double weights = product ? channels * static_cast<double>(t.primary) : 0;
  const double work =
      2 * pixels *
      (weights * kProductFlop + static_cast<double>(product ? t.kept() : t.channels) * taps * kDepthwiseFlop);
  const double elsewhere = others * static_cast<double>(s.in_h * s.in_w) * channels * kOthersFloat;
  const double by_rows = work * (busiest(s.h) + kBorder * static_cast<double>(t.kernel / 2)) +
                         (input == Cut::columns ? elsewhere : 0) + others * weights * kSharedWeight;
  const double by_columns = work * busiest(padded(columns) / kPanel) + (product || input == Cut::rows ? elsewhere : 0);
  return by_columns < by_rows ? Cut::columns : Cut::rows;
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
constexpr double kMadeAgain = 1.2;  // at most so many times a map's rows are made in bands

[[noreturn]] void fail_to_fit(int64_t h, int64_t w) {
  throw std::runtime_error("ghost_ops.program: x: expected a map that its kernels fit on, got " + std::to_string(h) +
                           "x" + std::to_string(w));
}

}  // namespace

int64_t rows_at_once(const Step& t, const Sized& s) {
  if (t.kind == Kind::load) return s.h;
  if (t.kind == Kind::conv) return kConvRows;
  return std::min(step_rows(s.w, s.h), (kMostRows - t.kernel) / t.stride + 1);
}

Plan::Plan(const Program& p, int64_t h, int64_t w, int64_t shares) : shares(shares), workspace{} {
  if (h < 1 || w < 1) fail_to_fit(h, w);
  Needs needs;
  const auto grow = [](int64_t& most, int64_t floats) { most = std::max(most, floats); };
  for (const Step& t : p.steps) {
    Sized s{h, w, h, w, Cut::rows, 1, {}, {}};
    if (t.in >= 0) s.in_h = s.h = steps[t.in].h, s.in_w = s.w = steps[t.in].w;
    if (t.kind == Kind::conv || t.kind == Kind::depthwise) {
      const int64_t around = t.kind == Kind::conv ? 2 * t.padding : t.kernel - 1;
      s.h = (s.in_h + around - t.kernel) / t.stride + 1, s.w = (s.in_w + around - t.kernel) / t.stride + 1;
      if (s.in_h + around < t.kernel || s.in_w + around < t.kernel) fail_to_fit(h, w);
    }
    const int64_t pixels = s.h * s.w, columns = t.kind == Kind::depthwise ? t.in_channels.pixel() : t.primary;
    s.cut = cut_of(t, s, columns, shares, t.in >= 0 ? steps[t.in].cut : Cut::rows);
    s.phases = phases_of(t, s.cut, shares);
    s.out.rows = s.y1.rows = s.h;
    switch (t.kind) {
      case Kind::conv:
        grow(needs.rows, ((kConvRows - 1) * t.stride + t.kernel) * (s.in_w + 2 * t.padding) * t.channels);
        flops += 2 * pixels * t.primary * t.channels * t.kernel * t.kernel;
        break;
      case Kind::ghost:
        if (t.residual >= 0 && (steps[t.residual].h != s.h || steps[t.residual].w != s.w))
          throw std::runtime_error("ghost_ops.program: steps: expected a residual of the output's size");
        if (t.multiplier() > 1) grow(needs.expanded, pixels * by_eight(t.kept()));
        if (t.scales()) grow(needs.scaled, panel_floats(t.primary, t.channels));
        grow(needs.zeros, s.w * std::max(by_eight(t.kept()), t.out_channels.pixel()));
        flops += 2 * pixels * (t.primary * t.channels + t.kept() * t.kernel * t.kernel);
        break;
      case Kind::depthwise:
        grow(needs.zeros, s.in_w * t.in_channels.pixel());
        flops += 2 * pixels * t.channels * t.kernel * t.kernel;
        break;
      case Kind::excite:
        grow(needs.hidden, by_eight(t.hidden));
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
      grow(needs.mean, padded(t.out_channels.count()));
      grow(needs.sums, sum_floats(t.kind == Kind::depthwise ? t.out_channels.pixel()
                                                            : std::max(t.out_channels.first, t.out_channels.second)));
    }
    steps.push_back(s);
    if (t.kind == Kind::store) out_h = s.h, out_w = s.w;
  }
  // From the first small map on, up to the end, images go through each step together.
  const int64_t count = static_cast<int64_t>(p.steps.size());
  late = count;
  while (late > 0 && (p.steps[late - 1].out < 0 || steps[late - 1].h * steps[late - 1].w <= kSmallMap)) late--;
  while (late < count && p.steps[late].kind == Kind::depthwise) late++;  // of a large map, while its rows are in cache
  ends = ends_of_runs(p, late);
  const Readers readers = readers_of(p);
  if (shares == 1) keep_rows_in_use(p, ends, readers, steps);
  own.assign(count, false);
  for (int64_t i = late; i < count; i++) {
    own[i] = true;
    for (int64_t source : {p.steps[i].in, p.steps[i].residual})
      if (source >= 0) own[source] = true;
  }
  // Steps of one run are under way at once; others are one after the other.
  std::vector<int64_t> time(count);
  for (int64_t i = 0, run = 0; i < count; i++) {
    if (shares == 1 && run < static_cast<int64_t>(ends.size()) && i == ends[run]) run++;
    time[i] = shares == 1 && i < late ? run : count + i;
  }
  if (shares > 1) cut_into_bands(p, readers, needs);
  place(p, readers, time, std::max<int64_t>(0, end_of_bands - 1), count, needs);
}

/// Memory for what steps [begin, end) write, in use from one time to another, and for what they work in.
void Plan::place(const Program& p, const Readers& readers, const std::vector<int64_t>& time, int64_t begin, int64_t end,
                 const Needs& needs) {
  const int64_t count = static_cast<int64_t>(p.steps.size());
  Workspace& m = workspace;
  Storage mine, all;
  m.values.assign(count, 0), m.y1.assign(count, 0);
  for (int64_t i = begin; i < end; i++) {
    const Step& t = p.steps[i];
    const Sized& s = steps[i];
    if (t.out < 0) continue;
    const int64_t last = time[readers[i].empty() ? i : readers[i].back()];
    m.values[i] = (own[i] ? mine : all).place(s.out.rows * s.w * t.out_channels.pixel(), time[i], last);
    if (t.residual >= 0) m.y1[i] = all.place(s.y1.rows * s.w * by_eight(t.primary), time[i], time[i]);
  }
  const auto take = [&](Storage& from, int64_t floats) { return from.place(floats, 0, 2 * count); };
  m.mean = take(mine, needs.mean), m.hidden = take(mine, needs.hidden), m.gate = take(mine, needs.mean);
  m.expanded = take(all, needs.expanded), m.scaled = take(all, needs.scaled);
  m.zeros = take(all, needs.zeros), m.zero_floats = needs.zeros;
  m.half_sums = needs.sums, m.sums_of_share = 2 * needs.sums, m.sums = take(all, m.sums_of_share * shares);
  m.rows_of_share = padded(needs.rows), m.rows = take(all, m.rows_of_share * shares);
  m.own_floats = mine.floats(), m.shared_floats = all.floats();
}

/// Large maps by bands of rows, where not too many rows at their borders are made twice: no thread waits for another or
/// reads what it wrote, and rows are read while they are in cache, as one thread alone does it.
void Plan::cut_into_bands(const Program& p, const Readers& readers, const Needs& needs) {
  const int64_t end = ghost::end_of_bands(p, readers);
  if (end == 0) return;
  const int64_t h = steps[end - 1].h;
  int64_t made = 0;
  for (int64_t i = 0; i < shares; i++) {
    const Progress first = walk_of_rows(p, steps, end, h * i / shares, h * (i + 1) / shares)[0];
    made += first.until - first.done;
  }
  if (static_cast<double>(made) > kMadeAgain * static_cast<double>(steps[0].h)) return;
  Plan band = *this;
  band.shares = 1;
  band.own.assign(p.steps.size(), false);
  keep_rows_of_bands(p, end, shares, readers, band.steps);
  band.place(p, readers, std::vector<int64_t>(p.steps.size(), 0), 0, end, {0, needs.zeros, 0, 0, 0, 0, needs.rows});
  end_of_bands = end, bands = std::make_shared<const Plan>(std::move(band));
  for (int64_t i = 0; i < end; i++) steps[i].phases = i == end - 1;
}

}  // namespace ghost
