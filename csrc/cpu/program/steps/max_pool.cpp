// Max pooling of a map over square windows. NaN counts as the largest.
#include <limits>

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
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const int64_t lanes = from.lanes(task.c0, task.c1);
    for (int64_t y = task.y; y < task.y + task.count; y++) {
      const RowRange rows = inside(input_rows(y, y + 1), from.h);
      float* largest = to.row(y) + task.c0;
      for (int64_t x = 0; x < to.w; x++)
        std::fill_n(largest + x * to.pixel, lanes, -std::numeric_limits<float>::infinity());
      for (int64_t i = rows.first; i < rows.end; i++)
        for (int64_t j = 0; j < kernel_; j++) {  // pixels whose window has a pixel in its column j
          const int64_t left = padding_ - j, right = from.w - 1 + padding_ - j;
          const int64_t begin = left > 0 ? (left + stride_ - 1) / stride_ : 0;
          const int64_t end = right < 0 ? 0 : std::min(to.w, right / stride_ + 1);
          if (begin < end)
            run.kernels().take_largest(from.row(i) + (begin * stride_ - left) * from.pixel + task.c0,
                                       stride_ * from.pixel, largest + begin * to.pixel, to.pixel, end - begin, lanes);
        }
    }
  }

 private:
  int64_t kernel_, stride_, padding_;

  static RowRange inside(const RowRange& r, int64_t size) {
    return {std::max<int64_t>(0, r.first), std::min(size, r.end)};
  }
};

const StepKind kind = step_kind<MaxPool>(8);

}  // namespace
}  // namespace ghost
