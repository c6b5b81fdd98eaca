// Max pooling of a map over square windows. NaN counts as the largest.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class MaxPool final : public Step {
 public:
  explicit MaxPool(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    r.read_map(*this, source, r.channels("channels"));
    kernel_ = r.within(1, 64, "kernel"), stride_ = r.stride(), padding_ = r.within(0, kernel_ / 2, "padding");
    keep_channels();
    r.check_slots(*this);
  }

  bool set_size(StepPlan& s) const override {
    const int64_t h = s.in_h + 2 * padding_, w = s.in_w + 2 * padding_;
    s.h = (h - kernel_) / stride_ + 1, s.w = (w - kernel_) / stride_ + 1;
    return h >= kernel_ && w >= kernel_;
  }
  Work work() const override { return {0, channels * kernel_ * kernel_, kernel_ / 2, true}; }
  RowRange input_rows(int64_t first, int64_t end) const override {
    return {first * stride_ - padding_, (end - 1) * stride_ - padding_ + kernel_};
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value &from = run.value(in), &to = run.value(*this);
    const int64_t lanes = from.lanes(task.c0, task.c1);
    for (int64_t y = task.y; y < task.y + task.count; y++) {
      const RowRange rows = inside(input_rows(y, y + 1), from.h);
      float* largest = to.row(y) + task.c0;
      for (int64_t x = 0; x < to.w; x++, largest += to.pixel) {
        const RowRange pixels = inside(input_rows(x, x + 1), from.w);
        std::copy_n(from.row(rows.first) + pixels.first * from.pixel + task.c0, lanes, largest);
        for (int64_t i = rows.first; i < rows.end; i++)
          for (int64_t j = pixels.first; j < pixels.end; j++)
            take_largest(from.row(i) + j * from.pixel + task.c0, lanes, largest);
      }
    }
  }

 private:
  int64_t kernel_, stride_, padding_;

  static RowRange inside(const RowRange& r, int64_t size) {
    return {std::max<int64_t>(0, r.first), std::min(size, r.end)};
  }

  static void take_largest(const float* __restrict from, int64_t count, float* __restrict largest) {
    for (int64_t c = 0; c < count; c++) {
      const float v = from[c], m = largest[c];
      largest[c] = v > m || v != v ? v : m;
    }
  }
};

const StepKind kind = step_kind<MaxPool>(8);

}  // namespace
}  // namespace ghost
