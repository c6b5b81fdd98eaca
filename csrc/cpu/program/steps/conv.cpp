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
    const int64_t wanted = std::max(kLeastRows, (kPixels + s.w - 1) / s.w);
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
           layer_.act == kRelu && !residual_first_,
           false,
           runs,
           cut_taps(row, runs)};
    g.a_group = down_.copies_between() * row, g.a_width = g.a_group == to.w * g.a_row ? 0 : to.w;
    if (!sources.empty() && run.value(sources[0]).is_padded)
      g.ahead = run.ahead_of(*this, task.y, task.count, task.share);
    for (int64_t i = 0; i < groups_; i++) {
      copy_rows(run, task, i * inputs, rows);
      g.b = run.packed(layer_.weight) + i * floats_of_group(run.format()) + task.c0 * run.format().depth(depth());
      if (groups_ > 1) {
        std::fill_n(std::copy_n(bias + i * filters, filters, bias_of_group), padded(filters) - filters, 0.f);
        g.bias = bias_of_group, g.n = filters, g.c = first + i * filters;
      }
      // The padding of a group's last vector is lanes of the next one, which are written later.
      g.c_padded = task.c0 + i * filters + by_eight(g.n) <= lanes;
      run.multiply(g);
    }
    if (residual_first_) add_residual(run, task);
    if (residual_first_ && layer_.act == kRelu)
      run.kernels().affine(first, to.pixel, {nullptr, nullptr, kRelu, nullptr}, first, to.pixel, pixels, count);
    run.activate(layer_, task.c0, first, to.pixel, pixels, count);
    if (is_added_ && !residual_first_) add_residual(run, task);
    if (task.sums) run.kernels().sum(first, to.pixel, pixels, count, task.sums);
  }

 private:
  static constexpr int64_t kLeastRows = 8, kPixels = 512, kCopiedFloats = 1 << 18;
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
