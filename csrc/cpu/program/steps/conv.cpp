// A dense convolution of the input, as products. Rows of the image are copied, padded, a few at a time, as NHWC: the
// taps of a row are a run of columns.
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Conv final : public Step {
 public:
  explicit Conv(StepReader& r) {
    out = r.slot(), channels = r.channels("channels"), columns = r.channels("out");
    kernel_ = r.within(1, kMostRuns / channels, "kernel"), stride_ = r.stride(), padding_ = r.padding();
    layer_ = r.layer();
    out_channels = {columns, 0};
    r.place_product(layer_, columns, depth());
  }

  bool is_entry() const override { return true; }

  void pack(Packer& packer) const override {
    const int64_t taps = kernel_ * kernel_;
    const float* weight = packer.weight({columns, channels, kernel_, kernel_});
    const float* scale = packer.epilogue(layer_, columns);
    Scratch scratch;
    float* by_tap = scratch.floats(columns * depth());
    kernels().gather({const_cast<float*>(weight), false, taps, depth(), 1}, columns, taps, channels, by_tap, depth(),
                     channels);
    packer.panels(layer_, by_tap, columns, depth(), scale);
  }

  bool set_size(StepPlan& s) const override {
    const int64_t h = s.in_h + 2 * padding_, w = s.in_w + 2 * padding_;
    s.h = (h - kernel_) / stride_ + 1, s.w = (w - kernel_) / stride_ + 1;
    return h >= kernel_ && w >= kernel_;
  }
  Work work() const override { return {columns * depth()}; }
  Needs needs(const StepPlan& s) const override {
    Needs n;
    n.share_scratch = ((kRows - 1) * stride_ + kernel_) * row_of(s);
    return n;
  }
  int64_t rows_at_once(const StepPlan&) const override { return kRows; }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value& to = run.value(*this);
    const StepPlan& s = run.plan(*this);
    const Map& x = run.x();
    const int64_t row = row_of(s), top = task.y * stride_ - padding_, end = top + (task.count - 1) * stride_ + kernel_;
    const int64_t first = std::max<int64_t>(top, 0), last = std::max(first, std::min(end, s.in_h));
    float* rows = run.share_scratch(task.share);
    std::fill(rows, rows + (end - top) * row, 0.f);
    run.kernels().gather({x.at(run.image(), first), x.bf16, x.channel, x.row, x.pixel}, last - first, s.in_w, channels,
                         rows + (first - top) * row + padding_ * channels, row, channels);
    Run runs[kMostRuns];
    for (int64_t i = 0; i < kernel_; i++) runs[i] = {i * row, kernel_ * channels};
    for (int64_t i = 0; i < task.count; i++)
      run.multiply({rows + i * stride_ * row, stride_ * channels, 1, s.w, depth(), columns, run.packed(layer_.weight),
                    0, run.packed(layer_.bias), to.row(task.y + i), to.pixel, true, layer_.act == kRelu, false, runs,
                    kernel_});
    run.activate(layer_, 0, to.row(task.y), to.pixel, task.count * s.w, to.pixel);
  }

 private:
  static constexpr int64_t kRows = 8;  // that are made at a time

  int64_t kernel_, stride_, padding_;
  Layer layer_;

  int64_t depth() const { return kernel_ * kernel_ * channels; }
  int64_t row_of(const StepPlan& s) const { return (s.in_w + 2 * padding_) * channels; }
};

const StepKind kind = step_kind<Conv>(1);

}  // namespace
}  // namespace ghost
