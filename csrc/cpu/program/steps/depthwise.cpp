// A depthwise convolution, padded by kernel / 2.
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Depthwise final : public Step {
 public:
  explicit Depthwise(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot(), squeeze = r.flag("squeeze");
    r.read_map(*this, source, r.channels("channels"));
    kernel_ = r.odd_kernel(), stride_ = r.stride(), layer_ = r.layer();
    keep_channels();
    if (!r.step(in).whole_vectors) r.refuse("whole vectors of an input by channels");
    r.check_slots(*this);
    r.place(layer_, kernel_ * kernel_ * padded(columns), columns);
  }

  void pack(Packer& packer) const override {
    const Channels& c = in_channels;
    const float* weight = packer.weight({channels, 1, kernel_, kernel_});
    const float* scale = packer.lanes_epilogue(layer_, c);
    packer.taps(layer_, weight, kernel_, scale, {{0, 0, c.first}, {c.first, c.second_at(), c.second}}, padded(columns));
  }

  bool set_size(StepPlan& s) const override {
    s.h = (s.in_h - 1) / stride_ + 1, s.w = (s.in_w - 1) / stride_ + 1;
    return true;
  }
  Work work() const override { return {0, channels * kernel_ * kernel_, kernel_ / 2, true}; }
  Needs needs(const StepPlan& s) const override {
    Needs n = Step::needs(s);
    n.zeros = s.in_w * columns;
    return n;
  }
  int64_t rows_at_once(const StepPlan& s) const override {
    return std::min(Step::rows_at_once(s), (kMostRows - kernel_) / stride_ + 1);
  }
  RowRange input_rows(int64_t first, int64_t end) const override {
    return {first * stride_ - kernel_ / 2, (end - 1) * stride_ - kernel_ / 2 + kernel_};
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value &from = run.value(in), &to = run.value(*this);
    const Kernels& k = run.kernels();
    const RowRange needed = input_rows(task.y, task.y + task.count);
    const int64_t lanes = task.c1 - task.c0, pixels = task.count * to.w;
    const float* rows[kMostRows];
    run.rows_around(from, needed.first, needed.end - needed.first, task.c0, rows);
    float* first = to.row(task.y) + task.c0;
    k.depthwise({rows, from.pixel, task.count, to.w, lanes, kernel_, run.packed(layer_.weight) + task.c0,
                 padded(columns), run.packed(layer_.bias) + task.c0, first, to.w * to.pixel, to.pixel,
                 layer_.act == kRelu, stride_, from.w});
    run.activate(layer_, task.c0, first, to.pixel, pixels, lanes);
    if (task.sums) k.sum(first, to.pixel, pixels, lanes, task.sums);
  }

 private:
  int64_t kernel_, stride_;
  Layer layer_;
};

const StepKind kind = step_kind<Depthwise>(3);

}  // namespace
}  // namespace ghost
