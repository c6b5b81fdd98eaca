// A map times the excitation.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Scale final : public Step {
 public:
  explicit Scale(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot(), squeeze = r.flag("squeeze");
    r.read_vectors(*this, source, r.channels("channels"));
    if (r.excitation != channels) r.refuse("an excitation of other channels");
    keep_channels();
  }

  Work work() const override { return {0, channels}; }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value x = run.value(sources[0]), &to = run.value(*this);
    for (int64_t y = task.y; y < task.y + task.count; y++)
      x.channels->each([&](int64_t lane, int64_t channel, int64_t count) {
        run.kernels().affine(x.row(y) + lane, x.pixel, {run.excitation() + channel, nullptr, kNone, nullptr},
                             to.row(y) + lane, to.pixel, to.w, count);
      });
    if (task.sums) run.kernels().sum(to.row(task.y), to.pixel, task.count * to.w, columns, task.sums);
  }
};

const StepKind kind = step_kind<Scale>(17);

}  // namespace
}  // namespace ghost
