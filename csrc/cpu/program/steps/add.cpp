// The sum of two maps.
#include <stdexcept>

#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Add final : public Step {
 public:
  explicit Add(StepReader& r) {
    const int64_t source = r.slot(), other = r.slot();
    out = r.slot(), squeeze = r.flag("squeeze");
    const int64_t count = r.channels("channels");
    r.read_vectors(*this, source, count), r.read_vectors(*this, other, count);
    keep_channels();
  }

  bool set_size(StepPlan& s) const override {
    if (!(s.sources[0] == s.sources[1]))
      throw std::runtime_error("ghost_ops.program: steps: expected maps of one size");
    return true;
  }
  Work work() const override { return {0, channels}; }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value x = run.value(sources[0]), other = run.value(sources[1]), &to = run.value(*this);
    for (int64_t y = task.y; y < task.y + task.count; y++)
      x.channels->each_pair(*other.channels, [&](int64_t lane, int64_t others, int64_t count) {
        run.kernels().add(x.row(y) + lane, x.pixel, other.row(y) + others, other.pixel, to.row(y) + lane, to.pixel,
                          to.w, count);
      });
    if (task.sums) run.kernels().sum(to.row(task.y), to.pixel, task.count * to.w, columns, task.sums);
  }
};

const StepKind kind = step_kind<Add>(12);

}  // namespace
}  // namespace ghost
