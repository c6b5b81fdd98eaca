#include "plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/halves.h"
#include "row_schedule.h"
#include "storage.h"

namespace ghost {
namespace {

// What a cut costs, in ns: a FLOP, a float that another thread wrote, a weight that others read too, and the finishing
// of rows at a border between two shares, from memory, as a part of the whole.
constexpr double kProductFlop = 0.007, kDepthwiseFlop = 0.02, kOthersFloat = 1.4, kSharedWeight = 0.12, kBorder = 0.02;

/// The cut whose busiest thread is done first. By rows each thread reads all weights; by columns all channels of its
/// input, a good part of which is in the caches of others. A depthwise convolution goes on where its input was made.
Partition partition_of(const Step& t, const StepPlan& s, int64_t shares, Partition input) {
  const Work work = t.work();
  if (shares == 1 || !work.by_columns) return Partition::rows;
  const auto busiest = [&](int64_t units) {
    return static_cast<double>((units + shares - 1) / shares) / static_cast<double>(units);
  };
  const double weights = static_cast<double>(work.products), others = 1.0 - 1.0 / static_cast<double>(shares);
  const double all =
      2 * static_cast<double>(s.h * s.w) * (weights * kProductFlop + static_cast<double>(work.taps) * kDepthwiseFlop);
  const double elsewhere =
      others * static_cast<double>(s.in_h * s.in_w) * static_cast<double>(t.channels) * kOthersFloat;
  const double by_rows = all * (busiest(s.h) + kBorder * static_cast<double>(work.border)) +
                         (input == Partition::columns ? elsewhere : 0) + others * weights * kSharedWeight;
  const double by_columns =
      all * busiest(padded(t.columns) / kPanel) + (work.mixes_channels || input == Partition::rows ? elsewhere : 0);
  return by_columns < by_rows ? Partition::columns : Partition::rows;
}

constexpr int64_t kSmallMap = 256;  // pixels
constexpr int64_t kMostSide = int64_t{1} << 24;
constexpr double kMadeTwice = 1.2;  // at most so many times a map's rows are made in bands

/// Raises unless `fits`: a step's map, or what it works in, is not more than memory holds.
void check_memory(bool fits, const Step& t, const StepPlan& s) {
  if (fits) return;
  throw std::runtime_error("ghost_ops.program: steps: expected maps that memory holds, got one of " +
                           std::to_string(t.out_channels.count()) + "x" + std::to_string(s.h) + "x" +
                           std::to_string(s.w));
}

[[noreturn]] void fail_to_fit(int64_t h, int64_t w) {
  throw std::runtime_error("ghost_ops.program: x: expected a map that its kernels fit on, got " + std::to_string(h) +
                           "x" + std::to_string(w));
}

}  // namespace

Needs Step::needs(const StepPlan&) const {
  Needs n;
  if (squeeze) n.sums = sum_floats(out_channels.width());
  return n;
}

int64_t Step::phases(const StepPlan& s) const { return s.partition == Partition::columns ? 1 : 1 + squeeze; }

int64_t Step::rows_at_once(const StepPlan& s) const { return makes_all_rows_at_once() ? s.h : step_rows(s.w, s.h); }

Plan::Plan(const Program& p, int64_t h, int64_t w, int64_t shares) : shares(shares), workspace{} {
  if (h < 1 || w < 1 || h > kMostSide || w > kMostSide) fail_to_fit(h, w);
  set_sizes(p, h, w);
  // From the first small map on, up to the end, images go through each step together.
  const int64_t count = p.size();
  const auto is_small = [&](int64_t step) { return steps[step].h * steps[step].w <= kSmallMap; };
  first_small_map = count;
  while (first_small_map > 0 && (p[first_small_map - 1].out < 0 || is_small(first_small_map - 1))) first_small_map--;
  const auto reads_large_map = [&](int64_t step) {
    const auto& sources = p[step].sources;
    return std::any_of(sources.begin(), sources.end(), [&](const Source& s) { return !is_small(s.step); });
  };
  while (first_small_map < count && reads_large_map(first_small_map))
    first_small_map++;  // while rows of that are in cache
  ends = ends_of_runs(p, steps, first_small_map);
  const Readers readers = readers_of(p);
  if (shares == 1) keep_rows_in_use(p, ends, readers, steps);
  is_only_returned.assign(count, false);
  for (const int64_t i : p.outputs) {
    const Source& source = p[i].sources[0];
    const Step& t = p[source.step];
    is_only_returned[source.step] = readers[source.step].size() == 1 && t.container == source.step &&
                                    !t.holds_sources() && source.channels.count() == t.out_channels.count();
  }
  per_image.assign(count, false);
  for (int64_t i = first_small_map; i < count; i++) {
    per_image[i] = true;
    for (const Source& source : p[i].sources) per_image[source.step] = true;
  }
  for (int64_t i = 0; i < count; i++)
    if (per_image[i]) per_image[p[i].container] = true;
  for (int64_t i = 0; i < count; i++) per_image[i] = per_image[p[i].container];
  // Steps of one run are under way at once; others are one after the other.
  std::vector<int64_t> time(count);
  for (int64_t i = 0, run = 0; i < count; i++) {
    if (shares == 1 && run < static_cast<int64_t>(ends.size()) && i == ends[run]) run++;
    time[i] = shares == 1 && i < first_small_map ? run : count + i;
  }
  if (shares > 1) cut_into_bands(p, readers);
  place(p, readers, time, std::max<int64_t>(0, end_of_bands - 1), count);
}

void Plan::set_sizes(const Program& p, int64_t h, int64_t w) {
  for (const auto& step : p.steps) {
    const Step& t = *step;
    StepPlan s{1, 1, 1, 1, {}, {}, Partition::rows, 1, {}, {}, {}};
    const auto size_of = [&](int64_t step) { return Size{steps[step].h, steps[step].w}; };
    for (const Source& source : t.sources) s.sources.push_back(size_of(source.step));
    for (const int64_t step : t.like) s.like.push_back(size_of(step));
    if (t.is_entry()) s.in_h = s.h = h, s.in_w = s.w = w;
    if (!t.sources.empty()) s.in_h = s.h = s.sources[0].h, s.in_w = s.w = s.sources[0].w;
    if (!t.set_size(s) || s.h < 1 || s.w < 1) fail_to_fit(h, w);
    const bool fits = s.h <= kMostSide && s.w <= kMostSide && t.out_channels.width() <= kMostFloats / (s.h * s.w);
    check_memory(fits, t, s);
    if (t.residual >= 0 && !(s.sources[t.residual] == Size{s.h, s.w}))
      throw std::runtime_error("ghost_ops.program: steps: expected a residual of the output's size");
    s.partition = partition_of(t, s, shares, t.sources.empty() ? Partition::rows : steps[t.sources[0].step].partition);
    s.phases = shares == 1 ? 1 : t.phases(s);
    s.out.rows = s.unfinished.rows = s.h;
    s.needs = t.needs(s);
    if (s.needs.zeros) {  // as far from pixel to pixel as in the map that the row is outside of
      const auto pixel = [&](const Step& of) { return p[of.container].out_channels.width(); };
      s.needs.zeros = std::max({s.needs.zeros, s.in_w * pixel(p[t.sources[0].step]), s.w * pixel(t)});
    }
    features = std::max(features, s.needs.features);
    const Needs& n = s.needs;
    const int64_t most = std::max({n.zeros, n.scratch, n.share_scratch, n.image_scratch, n.sums, n.features});
    check_memory(most <= kMostFloats, t, s);
    flops += 2. * static_cast<double>(s.h * s.w) * static_cast<double>(t.work().products + t.work().taps);
    steps.push_back(std::move(s));
  }
}

/// Memory for what steps [begin, end) write, in use from one time to another, and for what they work in.
void Plan::place(const Program& p, const Readers& readers, const std::vector<int64_t>& time, int64_t begin,
                 int64_t end) {
  const int64_t count = p.size();
  Workspace& m = workspace;
  Storage own, shared;
  m.values.assign(count, 0), m.scratch.assign(count, 0);
  Needs most;
  int64_t mean = 0;
  for (int64_t i = begin; i < end; i++) {
    const Step& t = p[i];
    const StepPlan& s = steps[i];
    most.zeros = std::max(most.zeros, s.needs.zeros), most.sums = std::max(most.sums, s.needs.sums);
    most.share_scratch = std::max(most.share_scratch, padded(s.needs.share_scratch));
    most.image_scratch = std::max(most.image_scratch, s.needs.image_scratch);
    if (t.squeeze) mean = std::max(mean, padded(t.out_channels.count()));
    if (const int64_t floats = s.needs.scratch + s.unfinished.rows * s.w * t.unfinished_pixel())
      m.scratch[i] = shared.place(floats, time[i], time[i]);
  }
  place_maps(p, readers, time, begin, end, own, shared);
  const auto take = [&](Storage& from, int64_t floats) { return from.place(floats, 0, 2 * count); };
  m.mean = take(own, mean), m.excitation = take(own, mean), m.image_scratch = take(own, most.image_scratch);
  m.zeros = take(shared, most.zeros), m.zero_floats = most.zeros;
  m.sums = take(shared, most.sums * shares), m.sums_of_share = most.sums;
  m.share_scratch = take(shared, most.share_scratch * shares), m.scratch_of_share = most.share_scratch;
  m.own_floats = own.floats(), m.shared_floats = shared.floats();
}

/// A map is there from the first step that writes into it to the last one that reads of it.
void Plan::place_maps(const Program& p, const Readers& readers, const std::vector<int64_t>& time, int64_t begin,
                      int64_t end, Storage& own, Storage& shared) {
  struct Use {
    int64_t first, last;
  };
  std::vector<Use> uses(p.steps.size(), Use{std::numeric_limits<int64_t>::max(), -1});
  for (int64_t i = begin; i < end; i++) {
    if (p[i].out < 0) continue;
    Use& use = uses[p[i].container];
    use.first = std::min(use.first, time[i]), use.last = std::max(use.last, time[i]);
    for (const Reader& reader : readers[i]) use.last = std::max(use.last, time[reader.step]);
  }
  for (int64_t i = begin; i < end; i++) {
    const StepPlan& s = steps[i];
    if (uses[i].last < 0) continue;
    const int64_t floats = s.out.rows * s.w * p[i].out_channels.width();
    workspace.values[i] = (per_image[i] ? own : shared).place(floats, uses[i].first, uses[i].last);
  }
  for (int64_t i = begin; i < end; i++) workspace.values[i] = workspace.values[p[i].container] + p[i].container_lane;
}

/// Large maps by bands of rows, where not too many rows at their borders are made twice: no thread waits for another or
/// reads what it wrote, and rows are read while they are in cache, as where one thread does it all.
void Plan::cut_into_bands(const Program& p, const Readers& readers) {
  const int64_t end = ghost::end_of_bands(p, readers);
  if (end == 0) return;
  const int64_t h = steps[end - 1].h;
  int64_t made = 0;
  for (int64_t i = 0; i < shares; i++) {
    const Progress first = progress_for_rows(p, steps, end, h * i / shares, h * (i + 1) / shares)[0];
    made += first.until - first.done;
  }
  if (static_cast<double>(made) > kMadeTwice * static_cast<double>(steps[0].h)) return;
  Plan band = *this;
  band.shares = 1;
  band.per_image.assign(p.steps.size(), false);
  keep_rows_of_bands(p, end, shares, readers, band.steps);
  band.place(p, readers, std::vector<int64_t>(p.steps.size(), 0), 0, end);
  end_of_bands = end, bands = std::make_shared<const Plan>(std::move(band));
  for (int64_t i = 0; i < end; i++) steps[i].phases = i == end - 1;
}

}  // namespace ghost
