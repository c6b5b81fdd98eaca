// A map times a gate, which may be of another size: it is brought to the map's by nearest upsampling.
#include "cpu/program/nearest.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Multiply final : public Step {
 public:
  explicit Multiply(StepReader& r) {
    const int64_t source = r.slot(), gate = r.slot();
    out = r.slot(), squeeze = r.flag("squeeze");
    const int64_t count = r.channels("channels");
    r.read_vectors(*this, source, count), r.read_vectors(*this, gate, count);
    keep_channels();
  }

  Work work() const override { return {0, channels}; }
  Needs needs(const StepPlan& s) const override {
    Needs n = Step::needs(s);
    n.share_scratch = s.w;
    return n;
  }
  RowRange source_rows(const StepPlan& s, int64_t source, int64_t first, int64_t end) const override {
    return source == 0 ? RowRange{first, end} : nearest_rows(s.sources[1].h, s.h, first, end);
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value x = run.value(sources[0]), gate = run.value(sources[1]), &to = run.value(*this);
    const Nearest rows(gate.h, to.h), pixels(gate.w, to.w);
    auto* with = reinterpret_cast<int32_t*>(run.share_scratch(task.share));  // the gate's pixel for each one
    for (int64_t i = 0; i < to.w; i++) with[i] = static_cast<int32_t>(pixels.at(i));
    for (int64_t y = task.y; y < task.y + task.count; y++)
      x.channels->each_pair(*gate.channels, [&](int64_t lane, int64_t others, int64_t count) {
        run.kernels().multiply_upsampled({x.row(y) + lane, x.pixel, to.w, count, with}, gate.row(rows.at(y)) + others,
                                         gate.pixel, to.row(y) + lane, to.pixel);
      });
    if (task.sums) run.kernels().sum(to.row(task.y), to.pixel, task.count * to.w, columns, task.sums);
  }
};

const StepKind kind = step_kind<Multiply>(13);

}  // namespace
}  // namespace ghost
