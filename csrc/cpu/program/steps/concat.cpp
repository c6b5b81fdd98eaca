// Maps side by side. Those that may be made where they go; others are copied.
#include <stdexcept>

#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Concat final : public Step {
 public:
  explicit Concat(StepReader& r) {
    out = r.slot(), squeeze = r.flag("squeeze");
    const int64_t count = r.within(2, 1 << 10, "sources");
    for (int64_t i = 0; i < count; i++) {
      const Channels& more = r.read_map(*this, r.slot(), 0).channels;
      lanes_.push_back(out_channels.append(more));
    }
    if (static_cast<int64_t>(out_channels.pieces().size()) > kMostRuns) r.refuse("channels in too many pieces");
    channels = out_channels.count(), columns = out_channels.width();
  }

  bool holds_sources() const override { return true; }
  bool set_size(StepPlan& s) const override {
    for (const Size& size : s.sources)
      if (!(size == s.sources[0])) throw std::runtime_error("ghost_ops.program: steps: expected maps of one size");
    return true;
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value& to = run.value(*this);
    for (size_t i = 0; i < sources.size(); i++) {
      const Value from = run.value(sources[i]);
      if (from.data == to.data + lanes_[i]) continue;  // it was made there
      for (int64_t y = task.y; y < task.y + task.count; y++)
        run.kernels().affine(from.row(y), from.pixel, {nullptr, nullptr, kNone, nullptr}, to.row(y) + lanes_[i],
                             to.pixel, to.w, from.lanes(0, from.channels->width()));
    }
    if (task.sums) run.kernels().sum(to.row(task.y), to.pixel, task.count * to.w, columns, task.sums);
  }

 private:
  std::vector<int64_t> lanes_;  // where each source begins
};

const StepKind kind = step_kind<Concat>(10);

}  // namespace
}  // namespace ghost
