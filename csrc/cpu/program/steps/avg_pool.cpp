// Average pooling over windows: a depthwise convolution with one weight.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class AvgPool final : public Step {
 public:
  explicit AvgPool(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    r.read_vectors(*this, source, r.channels("channels"));
    kernel_ = r.sizes(1, kMostRows, "kernel"), stride_ = r.sizes(1, 64, "stride");
    padding_ = r.sizes(0, kMostRows / 2, "padding"), counts_padding_ = r.flag("whether padding counts");
    if (2 * padding_.h > kernel_.h || 2 * padding_.w > kernel_.w) r.refuse("a padding above half of the kernel");
    keep_channels();
  }

  bool set_size(StepPlan& s) const override {
    const int64_t h = s.in_h + 2 * padding_.h - kernel_.h, w = s.in_w + 2 * padding_.w - kernel_.w;
    s.h = h / stride_.h + 1, s.w = w / stride_.w + 1;
    return h >= 0 && w >= 0;
  }
  Work work() const override { return {0, channels * kernel_.h * kernel_.w, kernel_.h / 2, true}; }
  Needs needs(const StepPlan& s) const override {
    Needs n;
    n.zeros = s.in_w * columns;
    n.share_scratch = columns;
    return n;
  }
  RowRange input_rows(int64_t first, int64_t end) const override {
    return {first * stride_.h - padding_.h, (end - 1) * stride_.h - padding_.h + kernel_.h};
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const int64_t lanes = task.c1 - task.c0, taps = kernel_.h * kernel_.w;
    float* weight = run.share_scratch(task.share);
    std::fill_n(weight, columns, 1.f / static_cast<float>(taps));
    const float* rows[kMostRows];
    for (int64_t y = task.y; y < task.y + task.count; y++) {
      const RowRange window = input_rows(y, y + 1);
      run.rows_around(from, window.first, kernel_.h, task.c0, rows);
      float* first = to.row(y) + task.c0;
      run.kernels().depthwise_row({rows, from.pixel, from.w, to.w, lanes, kernel_.h, kernel_.w, stride_.w, padding_.w,
                                   1, weight, 0, nullptr, first, to.pixel, false});
      if (!counts_padding_) leave_padding_out(window, from.h, from.w, first, to, lanes);
    }
  }

 private:
  Size kernel_, stride_, padding_;
  bool counts_padding_;

  static int64_t inside(int64_t first, int64_t count, int64_t size) {
    return std::min(first + count, size) - std::max<int64_t>(first, 0);
  }

  /// Means over whole windows become means over what is there of them.
  void leave_padding_out(const RowRange& window, int64_t h, int64_t w, float* row, const Value& to,
                         int64_t lanes) const {
    const int64_t rows = inside(window.first, kernel_.h, h), taps = kernel_.h * kernel_.w;
    for (int64_t x = 0; x < to.w; x++) {
      const int64_t there = rows * inside(x * stride_.w - padding_.w, kernel_.w, w);
      if (there == taps) continue;
      const float scale = static_cast<float>(taps) / static_cast<float>(there);
      for (int64_t c = 0; c < lanes; c++) row[x * to.pixel + c] *= scale;
    }
  }
};

const StepKind kind = step_kind<AvgPool>(16);

}  // namespace
}  // namespace ghost
