// A depthwise convolution.
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
    r.read_vectors(*this, source, r.channels("channels"));
    kernel_ = r.sizes(1, kMostRows, "kernel"), stride_ = r.sizes(1, 64, "stride");
    padding_ = r.sizes(0, 4096, "padding"), dilation_ = r.sizes(1, 64, "dilation");
    layer_ = r.layer();
    keep_channels();
    r.place(layer_, taps() * padded(columns), columns);
    const int64_t k = kernel_.h;
    is_same_ = kernel_.w == k && k % 2 == 1 && k <= 7 && stride_.h == stride_.w && padding_ == Size{k / 2, k / 2} &&
               (k == 1 || dilation_ == Size{1, 1});
    const int64_t n = taps();
    is_along_axis_ = (k == 1 || kernel_.w == 1) && (n == 3 || n == 5 || n == 7) && stride_ == Size{1, 1} &&
                     dilation_ == Size{1, 1} && padding_ == Size{k / 2, kernel_.w / 2};
  }

  void pack(Packer& packer) const override {
    const float* weight = packer.weight({channels, 1, kernel_.h, kernel_.w});
    const float* scale = packer.lanes_epilogue(layer_, out_channels);
    packer.taps(layer_, weight, taps(), scale, out_channels, padded(columns));
  }

  bool set_size(StepPlan& s) const override {
    const auto made = [](int64_t n, int64_t k, int64_t stride, int64_t padding, int64_t dilation) {
      const int64_t left = n + 2 * padding - dilation * (k - 1) - 1;
      return left < 0 ? 0 : left / stride + 1;
    };
    s.h = made(s.in_h, kernel_.h, stride_.h, padding_.h, dilation_.h);
    s.w = made(s.in_w, kernel_.w, stride_.w, padding_.w, dilation_.w);
    return s.h > 0 && s.w > 0;
  }
  Work work() const override { return {0, channels * taps(), kernel_.h / 2, true}; }
  Needs needs(const StepPlan& s) const override {
    Needs n = Step::needs(s);
    n.zeros = s.in_w * columns;
    return n;
  }
  int64_t rows_at_once(const StepPlan& s) const override {
    return is_same_ || is_along_axis_ ? std::min(Step::rows_at_once(s), (kMostRows - kernel_.h) / stride_.h + 1)
                                      : Step::rows_at_once(s);
  }
  RowRange input_rows(int64_t first, int64_t end) const override {
    const int64_t last = (end - 1) * stride_.h - padding_.h + (kernel_.h - 1) * dilation_.h;
    return {first * stride_.h - padding_.h, last + 1};
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const Kernels& k = run.kernels();
    const int64_t lanes = task.c1 - task.c0, pixels = task.count * to.w;
    float* first = to.row(task.y) + task.c0;
    const float *weight = run.packed(layer_.weight) + task.c0, *bias = run.packed(layer_.bias) + task.c0;
    const float* rows[kMostRows];
    if (is_same_) {
      const RowRange needed = input_rows(task.y, task.y + task.count);
      run.rows_around(from, needed.first, needed.end - needed.first, task.c0, rows);
      k.depthwise({rows, from.pixel, task.count, to.w, lanes, kernel_.h, weight, padded(columns), bias, first,
                   to.w * to.pixel, to.pixel, layer_.act == kRelu, stride_.h, from.w});
    } else if (is_along_axis_) {
      const RowRange needed = input_rows(task.y, task.y + task.count);
      run.rows_around(from, needed.first, needed.end - needed.first, task.c0, rows);
      k.axis_conv({rows, from.pixel, kernel_.h > 1, task.count, to.w, lanes, taps(), weight, padded(columns), first,
                   to.w * to.pixel, to.pixel, bias, layer_.act == kRelu});
    } else {
      for (int64_t y = 0; y < task.count; y++) {
        for (int64_t i = 0; i < kernel_.h; i++)
          run.rows_around(from, input_rows(task.y + y, task.y + y + 1).first + i * dilation_.h, 1, task.c0, rows + i);
        k.depthwise_row({rows, from.pixel, from.w, to.w, lanes, kernel_.h, kernel_.w, stride_.w, padding_.w,
                         dilation_.w, weight, padded(columns), bias, first + y * to.w * to.pixel, to.pixel,
                         layer_.act == kRelu});
      }
    }
    run.activate(layer_, task.c0, first, to.pixel, pixels, lanes);
    if (task.sums) k.sum(first, to.pixel, pixels, lanes, task.sums);
  }

 private:
  Size kernel_, stride_, padding_, dilation_;
  bool is_same_;        // square and odd, padded by half of it, as a faster kernel has it
  bool is_along_axis_;  // one row or column of such taps, as another has it
  Layer layer_;

  int64_t taps() const { return kernel_.h * kernel_.w; }
};

const StepKind kind = step_kind<Depthwise>(3);

}  // namespace
}  // namespace ghost
