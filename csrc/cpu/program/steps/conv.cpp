// A dense convolution of a map, or of the program's input, as products.
//
// The rows that some rows of the output need are copied, padded, as dense NHWC, a few at a time: the taps of a row are
// then a run of columns, and the pixels of all rows are the rows of one product. A group of channels is a copy and a
// product of its own.
#include <stdexcept>

#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

/// The kernel along one side. Where it has a single tap, pixels between those that it reads are not copied.
struct Side {
  int64_t kernel, stride, padding, dilation;

  int64_t reach() const { return dilation * (kernel - 1) + 1; }
  bool fits(int64_t n) const { return n + 2 * padding >= reach(); }
  int64_t outputs(int64_t n) const { return (n + 2 * padding - reach()) / stride + 1; }
  int64_t step() const { return kernel == 1 ? stride : 1; }
  /// Copied pixels for so many outputs, and from one output to the next.
  int64_t copies(int64_t outputs) const { return kernel == 1 ? outputs : (outputs - 1) * stride + reach(); }
  int64_t copies_between() const { return stride / step(); }
  RowRange inputs(int64_t first, int64_t end) const {
    return {first * stride - padding, (end - 1) * stride - padding + reach()};
  }
};

class Conv final : public Step {
 public:
  explicit Conv(StepReader& r) {
    const int64_t source = r.slot_or_none("source");
    out = r.slot();
    const int64_t added = r.slot_or_none("residual");
    residual_first_ = r.flag("residual_first"), squeeze = r.flag("squeeze");
    channels = r.channels("channels"), columns = r.channels("filters");
    for (Side* side : {&down_, &across_}) side->kernel = r.within(1, kMostRuns, "kernel");
    for (Side* side : {&down_, &across_}) side->stride = r.stride();
    for (Side* side : {&down_, &across_}) side->padding = r.padding();
    for (Side* side : {&down_, &across_}) side->dilation = r.within(1, 64, "dilation");
    groups_ = r.within(1, channels, "groups"), layer_ = r.layer();
    if (source >= 0) r.read_map(*this, source, channels);
    is_added_ = added >= 0;
    if (channels % groups_ || columns % groups_) r.refuse("channels or filters that are not a multiple of the groups");
    if (run_count() > kMostRuns) r.refuse("a kernel of too many taps");
    if (is_added_ && source >= 0 && r.read_map(*this, added, 0).channels.count() != columns)
      r.refuse("a residual of other channels");
    if (is_added_ && source < 0) r.refuse("a residual of the first step");
    if (residual_first_ && !is_added_) r.refuse("a residual that comes first, and none");
    out_channels = {columns};
    r.place(layer_, groups_ * floats_of_group(r.format()), columns);
  }

  bool is_entry() const override { return sources.empty(); }
  bool writes_in_place(const Map&) const override { return true; }

  void pack(Packer& packer) const override {
    const int64_t taps = down_.kernel * across_.kernel, inputs = inputs_of_group(), filters = filters_of_group();
    const float* weight = packer.weight({columns, inputs, down_.kernel, across_.kernel});
    const float* scale = packer.epilogue(layer_, columns);
    Scratch scratch;
    float* by_tap = scratch.floats(filters * depth());
    for (int64_t g = 0; g < groups_; g++) {
      const float* from = weight + g * filters * depth();
      kernels().gather({const_cast<float*>(from), false, taps, depth(), 1}, filters, taps, inputs, by_tap, depth(),
                       inputs);
      Layer group = layer_;
      group.weight += g * floats_of_group(packer.format());
      packer.panels(group, by_tap, filters, depth(), scale ? scale + g * filters : nullptr);
    }
  }

  bool set_size(StepPlan& s) const override {
    if (!down_.fits(s.in_h) || !across_.fits(s.in_w)) return false;
    s.h = down_.outputs(s.in_h), s.w = across_.outputs(s.in_w);
    if (is_added_ && !(s.sources[1] == Size{s.h, s.w}))
      throw std::runtime_error("ghost_ops.program: steps: expected a residual of the output's size");
    return true;
  }
  Work work() const override {
    return {columns * depth(), 0, down_.reach() / 2, !sources.empty() && groups_ == 1, true};
  }
  Needs needs(const StepPlan& s) const override {
    Needs n = Step::needs(s);
    n.share_scratch = copied_floats(s, rows_at_once(s)) + (groups_ > 1 ? padded(filters_of_group()) : 0);
    return n;
  }
  /// Enough for the weights, which are read once for them, but not more than stay in cache; about as many each time.
  int64_t rows_at_once(const StepPlan& s) const override {
    const int64_t wanted = std::max<int64_t>(sources.empty() ? 8 : 4, (kPixels + s.w - 1) / s.w);
    const int64_t floats = across_.copies(s.w) * inputs_of_group() * down_.copies_between();
    const int64_t most = std::max<int64_t>(1, std::min(wanted, kCopiedFloats / floats));
    const int64_t times = (s.h + most - 1) / most;
    return (s.h + times - 1) / times;
  }
  bool is_apart(const StepPlan&) const override { return columns * depth() >= kApart; }
  RowRange source_rows(const StepPlan&, int64_t source, int64_t first, int64_t end) const override {
    return source == 0 ? down_.inputs(first, end) : RowRange{first, end};
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value& to = run.value(*this);
    const int64_t inputs = inputs_of_group(), filters = filters_of_group(), row = across_.copies(to.w) * inputs;
    const int64_t pixels = task.count * to.w, count = task.c1 - task.c0,
                  lanes = to.is_padded ? out_channels.width() : columns;
    float *rows = run.share_scratch(task.share), *bias_of_group = rows + copied_floats(run.plan(*this), task.count);
    float* first = to.row(task.y) + task.c0;
    const float* bias = run.packed(layer_.bias) + task.c0;
    const bool relu_comes_first = layer_.act == kRelu && !residual_first_;
    Finish finish = run.finish(layer_, task.c0);
    if (relu_comes_first) finish.affine.act = kNone;
    const bool adds = is_added_ && set_added(run, task, finish.affine), adds_later = is_added_ && !adds;
    if (adds_later && residual_first_) finish.affine.act = kNone;
    Run runs[kMostRuns];
    Gemm g{rows,
           across_.copies_between() * inputs,
           1,
           pixels,
           depth(),
           count,
           nullptr,
           0,
           bias,
           first,
           to.pixel,
           true,
           relu_comes_first,
           false,
           runs,
           cut_taps(row, runs)};
    g.a_group = down_.copies_between() * row, g.a_width = g.a_group == to.w * g.a_row ? 0 : to.w;
    if (!sources.empty() && run.value(sources[0]).is_padded)
      g.ahead = run.ahead_of(*this, task.y, task.count, task.share);
    if (adds || finish.affine.act != kNone) g.finish = &finish;
    for (int64_t i = 0; i < groups_; i++) {
      copy_rows(run, task, i * inputs, rows);
      g.b = run.packed(layer_.weight) + i * floats_of_group(run.format()) + task.c0 * run.format().depth(depth());
      if (groups_ > 1) {
        std::fill_n(std::copy_n(bias + i * filters, filters, bias_of_group), padded(filters) - filters, 0.f);
        g.bias = bias_of_group, g.n = filters, g.c = first + i * filters;
      }
      // The padding of a group's last vector is lanes of the next one, which are written later.
      g.c_padded = task.c0 + i * filters + by_eight(g.n) <= lanes;
      multiply(run, task, g);
      if (finish.affine.slope) finish.affine.slope += filters;
      if (finish.affine.added) finish.affine.added += filters;
    }
    if (adds_later) add_residual(run, task);
    if (adds_later && residual_first_ && layer_.act != kNone) {
      finish = run.finish(layer_, task.c0);
      run.kernels().affine(first, to.pixel, finish.affine, first, to.pixel, pixels, count);
    }
    if (task.sums) run.kernels().sum(first, to.pixel, pixels, count, task.sums);
  }

 private:
  static constexpr int64_t kPixels = 400, kCopiedFloats = 1 << 18;
  static constexpr int64_t kColumnsOfPass = 256, kCostOfPass = 16;  // of A, as products take them at a time
  static constexpr int64_t kApart = 1 << 15;  // weights, which are better read for many rows at a time

  Side down_{}, across_{};
  int64_t groups_;
  bool is_added_, residual_first_;  // the residual: the second source
  Layer layer_;

  int64_t inputs_of_group() const { return channels / groups_; }
  int64_t filters_of_group() const { return columns / groups_; }
  int64_t depth() const { return down_.kernel * across_.kernel * inputs_of_group(); }
  int64_t floats_of_group(const WeightFormat& format) const {
    return padded(format.floats(filters_of_group(), depth()));
  }
  /// Of the copy of a group's rows, for so many rows of the output.
  int64_t copied_floats(const StepPlan& s, int64_t rows) const {
    return padded(down_.copies(rows) * across_.copies(s.w) * inputs_of_group());
  }
  bool rows_are_runs() const { return across_.dilation == 1 || across_.kernel == 1; }
  int64_t run_count() const { return down_.kernel * (rows_are_runs() ? 1 : across_.kernel); }

  /// Where the taps of an output are among copied rows of so many floats.
  int64_t cut_taps(int64_t row, Run* runs) const {
    const int64_t inputs = inputs_of_group();
    int64_t found = 0;
    for (int64_t i = 0; i < down_.kernel; i++) {
      const int64_t at = i * down_.dilation * row;
      if (rows_are_runs())
        runs[found++] = {at, across_.kernel * inputs};
      else
        for (int64_t j = 0; j < across_.kernel; j++) runs[found++] = {at + j * across_.dilation * inputs, inputs};
    }
    return found;
  }

  /// What a group's products read for some rows of the output, with zeros outside of the map.
  void copy_rows(const ProgramRun& run, const RowTask& task, int64_t channel, float* to) const {
    const StepPlan& s = run.plan(*this);
    const int64_t inputs = inputs_of_group(), step = across_.step(), width = across_.copies(s.w);
    const int64_t first = std::min(width, (across_.padding + step - 1) / step);
    const int64_t end = std::max(first, std::min(width, (s.in_w - 1 + across_.padding) / step + 1));
    const int64_t x = first * step - across_.padding, copies = down_.copies(task.count);
    for (int64_t i = 0; i < copies; i++, to += width * inputs) {
      const int64_t y = task.y * down_.stride - down_.padding + i * down_.step();
      const bool inside = y >= 0 && y < s.in_h && first < end;
      const int64_t left = inside ? first : width, right = inside ? end : width;
      std::fill(to, to + left * inputs, 0.f);
      std::fill(to + right * inputs, to + width * inputs, 0.f);
      if (inside) copy_pixels(run, y, x, end - first, channel, to + first * inputs);
    }
  }

  /// `count` pixels of row y from x on.
  void copy_pixels(const ProgramRun& run, int64_t y, int64_t x, int64_t count, int64_t channel, float* to) const {
    const int64_t inputs = inputs_of_group(), step = across_.step();
    const auto copy = [&](char* from, bool bf16, int64_t next, int64_t pixel, int64_t some, int64_t at) {
      from += x * pixel * (bf16 ? 2 : 4);
      run.kernels().gather({from, bf16, next, 0, step * pixel}, 1, count, some, to + at, 0, inputs);
    };
    if (sources.empty()) {
      const Map& map = run.x();
      return copy(map.at(run.image(), y, channel), map.bf16, map.channel, map.pixel, inputs, 0);
    }
    const Value map = run.value(sources[0]);
    map.channels->each(channel, channel + inputs, [&](int64_t lane, int64_t at, int64_t some) {
      copy(reinterpret_cast<char*>(map.row(y) + lane), false, 1, map.pixel, some, at);
    });
  }

  /// The residual as what the product's end adds: where it is in one piece, and its rows follow each other.
  bool set_added(const ProgramRun& run, const RowTask& task, Affine& affine) const {
    const Value other = run.value(sources[1]);
    if (other.channels->pieces().size() != 1 || other.ring.room(task.y) < task.count) return false;
    affine.added = other.row(task.y) + other.channels->pieces()[0].at + task.c0, affine.added_pixel = other.pixel;
    affine.is_added_last = !residual_first_;
    return true;
  }

  /// Some taps, which follow each other, and the pixels of a task under which they are inside of the map.
  struct Part {
    int64_t tap, taps;
    RowRange rows, across;
    int64_t pixels() const { return (rows.end - rows.first) * (across.end - across.first); }
  };

  /// Of pixels [first, first + count) along a side, from `first` on, those under which a tap is inside of the map.
  static RowRange under_tap(const Side& side, int64_t tap, int64_t size, int64_t first, int64_t count) {
    const int64_t before = side.padding - tap * side.dilation, last = size - 1 + before;
    const int64_t begin = before > 0 ? (before + side.stride - 1) / side.stride : 0;
    const int64_t end = last < 0 ? 0 : last / side.stride + 1;
    const RowRange found{std::clamp<int64_t>(begin - first, 0, count), std::clamp<int64_t>(end - first, 0, count)};
    return {found.first, std::max(found.first, found.end)};
  }

  /// The kernel's rows in parts, as they are inside of the map for a task; or, with `by_taps`, its taps.
  std::vector<Part> parts_of(const ProgramRun& run, const RowTask& task, bool by_taps) const {
    const StepPlan& s = run.plan(*this);
    std::vector<Part> parts;
    parts.reserve(down_.kernel * (by_taps ? across_.kernel : 1));
    for (int64_t i = 0; i < down_.kernel; i++) {
      const RowRange rows = under_tap(down_, i, s.in_h, task.y, task.count);
      for (int64_t j = 0; j < (by_taps ? across_.kernel : 1); j++) {
        const RowRange across = by_taps ? under_tap(across_, j, s.in_w, 0, s.w) : RowRange{0, s.w};
        const Part part{i * across_.kernel + j, by_taps ? 1 : across_.kernel, rows, across};
        if (!by_taps && !parts.empty() && parts.back().rows.first == rows.first && parts.back().rows.end == rows.end)
          parts.back().taps += part.taps;
        else if (part.pixels() > 0)
          parts.push_back(part);
      }
    }
    return parts;
  }

  /// What products take, in multiply-adds of a vector: each pass over the result costs as much as some columns of A.
  int64_t cost_of(const std::vector<Part>& parts) const {
    int64_t cost = 0;
    for (const Part& p : parts) {
      const int64_t columns = p.taps * inputs_of_group(), passes = (columns + kColumnsOfPass - 1) / kColumnsOfPass;
      cost += p.pixels() * (columns + kCostOfPass * passes);
    }
    return cost;
  }

  /// A group's products. Taps that are outside of the map for some pixels are left out for these where that saves more
  /// than it costs: each part is a product of its own over the pixels that it is for, the last one over all of them.
  void multiply(const ProgramRun& run, const RowTask& task, const Gemm& whole) const {
    const int64_t width = run.value(*this).w, taps = down_.kernel * across_.kernel;
    const RowRange rows = down_.inputs(task.y, task.y + task.count);
    const bool is_at_border = rows.first < 0 || rows.end > run.plan(*this).in_h;
    const bool may_cut_taps = depth() > kCostOfPass * (taps - 1);  // else passes cost more than there is to save
    if (!is_at_border && !may_cut_taps) return run.multiply(whole);
    std::vector<Part> best{{0, taps, {0, task.count}, {0, width}}};
    const int64_t tap_row = across_.kernel * inputs_of_group();
    const auto is_full = [&](const Part& p) { return p.pixels() == task.count * width; };
    for (const bool by_taps : {false, true}) {
      if (by_taps ? !may_cut_taps || run.format().columns > 1 : !is_at_border || tap_row % run.format().columns)
        continue;
      std::vector<Part> parts = parts_of(run, task, by_taps);
      const auto full = std::find_if(parts.begin(), parts.end(), is_full);
      if (full == parts.end() || cost_of(parts) >= cost_of(best)) continue;
      std::rotate(full, full + 1, parts.end());
      best = std::move(parts);
    }
    for (size_t i = 0; i < best.size(); i++) multiply(run, whole, best[i], i == 0, i + 1 == best.size());
  }

  void multiply(const ProgramRun& run, const Gemm& whole, const Part& p, bool is_first, bool is_last) const {
    const int64_t width = run.value(*this).w, inputs = inputs_of_group();
    if (is_first && is_last) return run.multiply(whole);
    Run runs[kMostRuns];
    Gemm g = whole;
    g.k = p.taps * inputs, g.b_rows = whole.k, g.b_first = p.tap * inputs;
    g.run_count = cut_runs(whole, g.b_first, g.k, runs), g.runs = runs;
    g.rows = p.pixels(), g.accumulate = !is_first;
    g.a += p.rows.first * whole.a_group + p.across.first * whole.a_row;
    g.c += (p.rows.first * width + p.across.first) * whole.c_row;
    if (const int64_t pixels = p.across.end - p.across.first; pixels < width)
      g.a_width = pixels, g.c_group = width * whole.c_row;
    if (!is_last) g.relu = false, g.finish = nullptr;
    run.multiply(g);
    for (int64_t i = 0; is_first && i < whole.rows; i++) {
      const int64_t y = i / width, x = i % width;
      if (y < p.rows.first || y >= p.rows.end || x < p.across.first || x >= p.across.end)
        std::copy_n(whole.bias, whole.n, whole.c + i * whole.c_row);
    }
  }

  /// Columns [first, first + count) of a product.
  static int64_t cut_runs(const Gemm& g, int64_t first, int64_t count, Run* runs) {
    int64_t found = 0;
    for (int64_t i = 0, begin = 0; i < g.run_count; begin += g.runs[i++].count) {
      const int64_t from = std::max(first, begin), to = std::min(first + count, begin + g.runs[i].count);
      if (from < to) runs[found++] = {g.runs[i].offset + from - begin, to - from};
    }
    return found;
  }

  void add_residual(const ProgramRun& run, const RowTask& task) const {
    const Value &to = run.value(*this), other = run.value(sources[1]);
    other.channels->each(task.c0, task.c1, [&](int64_t lane, int64_t at, int64_t some) {
      for (int64_t y = task.y; y < task.y + task.count; y++) {
        float* sum = to.row(y) + task.c0 + at;
        run.kernels().add(other.row(y) + lane, other.pixel, sum, to.pixel, sum, to.pixel, to.w, some);
      }
    });
  }
};

const StepKind kind = step_kind<Conv>(1);

}  // namespace
}  // namespace ghost
