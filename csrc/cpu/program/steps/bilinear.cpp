// Bilinear upsampling, or downsampling.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"
#include "cpu/program/target_size.h"

namespace ghost {
namespace {

/// Where the rows (or columns) of a map are among those of another, as PyTorch has it.
class Places {
 public:
  /// With a factor it decides, not the sizes (0: there is none).
  Places(int64_t from, int64_t to, double factor, bool align_corners)
      : last_(from - 1),
        begin_(align_corners ? 0 : 0.5),
        step_(align_corners ? (to > 1 ? static_cast<double>(from - 1) / static_cast<double>(to - 1) : 0)
              : factor > 0  ? 1 / factor
                            : static_cast<double>(from) / static_cast<double>(to)) {}

  Between at(int64_t y) const {
    const double place = std::max(0.0, (static_cast<double>(y) + begin_) * step_ - begin_);
    const int64_t first = std::min(last_, static_cast<int64_t>(place));
    return {static_cast<int32_t>(first), static_cast<int32_t>(std::min(last_, first + 1)),
            static_cast<float>(place - static_cast<double>(first))};
  }

 private:
  int64_t last_;
  double begin_, step_;
};

class BilinearUpsample final : public Step {
 public:
  explicit BilinearUpsample(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    r.read_vectors(*this, source, r.channels("channels"));
    size_ = TargetSize(r, *this);
    align_corners_ = r.flag("align_corners");
    keep_channels();
  }

  bool set_size(StepPlan& s) const override { return size_.set(s); }
  Work work() const override { return {0, 4 * channels}; }
  Needs needs(const StepPlan& s) const override {
    Needs n = Step::needs(s);
    n.share_scratch = s.w * static_cast<int64_t>(sizeof(Between) / sizeof(float));
    return n;
  }
  RowRange source_rows(const StepPlan& s, int64_t, int64_t first, int64_t end) const override {
    const Places rows = places(s.in_h, s.h, size_.row_factor());
    return {rows.at(std::max<int64_t>(0, first)).left, end <= first ? 0 : rows.at(std::min(end, s.h) - 1).right + 1};
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const Places rows = places(from.h, to.h, size_.row_factor()), pixels = places(from.w, to.w, size_.column_factor());
    auto* across = reinterpret_cast<Between*>(run.share_scratch(task.share));
    for (int64_t i = 0; i < to.w; i++) across[i] = pixels.at(i);
    for (int64_t y = task.y; y < task.y + task.count; y++) {
      const Between down = rows.at(y);
      run.kernels().upsample_bilinear({from.row(down.left), from.row(down.right), from.pixel, down.across, across, to.w,
                                       columns, to.row(y), to.pixel});
    }
  }

 private:
  TargetSize size_;
  bool align_corners_;

  Places places(int64_t from, int64_t to, double factor) const { return {from, to, factor, align_corners_}; }
};

const StepKind kind = step_kind<BilinearUpsample>(22);

}  // namespace
}  // namespace ghost
