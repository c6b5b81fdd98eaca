// Nearest upsampling, or downsampling.
#include "cpu/program/nearest.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Upsample final : public Step {
 public:
  explicit Upsample(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    r.read_vectors(*this, source, r.channels("channels"));
    if (const int64_t other = r.slot_or_none("like"); other >= 0) like.push_back(r.map_in(other).step);
    size_ = r.sizes(0, int64_t{1} << 24, "size");
    row_scale_ = r.real(), column_scale_ = r.real();
    if (like.empty() && (size_.h == 0 || size_.w == 0) &&
        !(row_scale_ > 0 && column_scale_ > 0 && row_scale_ < 1e6 && column_scale_ < 1e6))
      r.refuse("an upsampling to no size");
    keep_channels();
  }

  bool set_size(StepPlan& s) const override {
    if (!like.empty())
      s.h = s.like[0].h, s.w = s.like[0].w;
    else if (!scales())
      s.h = size_.h, s.w = size_.w;
    else
      s.h = static_cast<int64_t>(static_cast<double>(s.in_h) * row_scale_),
      s.w = static_cast<int64_t>(static_cast<double>(s.in_w) * column_scale_);
    return s.h > 0 && s.w > 0;
  }
  Work work() const override { return {0, channels}; }
  RowRange source_rows(const StepPlan& s, int64_t, int64_t first, int64_t end) const override {
    return nearest_rows(s.in_h, s.h, first, end, scales() ? row_scale_ : 0);
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const Nearest rows(from.h, to.h, scales() ? row_scale_ : 0), pixels(from.w, to.w, scales() ? column_scale_ : 0);
    for (int64_t y = task.y; y < task.y + task.count; y++)
      pixels.each_run([&](int64_t at, int64_t begin, int64_t count) {
        const int64_t step = from.w == to.w ? from.pixel : 0;
        run.kernels().affine(from.row(rows.at(y)) + at * from.pixel, step, {nullptr, nullptr, kNone, nullptr},
                             to.row(y) + begin * to.pixel, to.pixel, count, columns);
      });
  }

 private:
  Size size_;
  double row_scale_, column_scale_;

  bool scales() const { return like.empty() && size_.h == 0; }
};

const StepKind kind = step_kind<Upsample>(15);

}  // namespace
}  // namespace ghost
