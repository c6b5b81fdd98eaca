// Nearest upsampling, or downsampling.
#include "cpu/program/nearest.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"
#include "cpu/program/target_size.h"

namespace ghost {
namespace {

class Upsample final : public Step {
 public:
  explicit Upsample(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    r.read_vectors(*this, source, r.channels("channels"));
    size_ = TargetSize(r, *this);
    keep_channels();
  }

  bool set_size(StepPlan& s) const override { return size_.set(s); }
  Work work() const override { return {0, channels}; }
  RowRange source_rows(const StepPlan& s, int64_t, int64_t first, int64_t end) const override {
    return nearest_rows(s.in_h, s.h, first, end, size_.row_factor());
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const Nearest rows(from.h, to.h, size_.row_factor()), pixels(from.w, to.w, size_.column_factor());
    for (int64_t y = task.y; y < task.y + task.count; y++)
      pixels.each_run([&](int64_t at, int64_t begin, int64_t count) {
        const int64_t step = from.w == to.w ? from.pixel : 0;
        run.kernels().affine(from.row(rows.at(y)) + at * from.pixel, step, {nullptr, nullptr, kNone, nullptr},
                             to.row(y) + begin * to.pixel, to.pixel, count, columns);
      });
  }

 private:
  TargetSize size_;
};

const StepKind kind = step_kind<Upsample>(15);

}  // namespace
}  // namespace ghost
