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
  RowRange source_rows(const StepPlan& s, int64_t source, int64_t first, int64_t end) const override {
    return source == 0 ? RowRange{first, end} : nearest_rows(s.sources[1].h, s.h, first, end);
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value x = run.value(sources[0]), gate = run.value(sources[1]), &to = run.value(*this);
    const Nearest rows(gate.h, to.h), columns_of(gate.w, to.w);
    for (int64_t y = task.y; y < task.y + task.count; y++) {
      const float* gates = gate.row(rows.at(y));
      x.channels->each_pair(*gate.channels, [&](int64_t lane, int64_t others, int64_t count) {
        columns_of.each_run([&](int64_t from, int64_t begin, int64_t pixels) {  // pixels with the same gate
          const int64_t gate_pixel = gate.w == to.w ? gate.pixel : 0;
          run.kernels().multiply(x.row(y) + begin * x.pixel + lane, x.pixel, gates + from * gate.pixel + others,
                                 gate_pixel, to.row(y) + begin * to.pixel + lane, to.pixel, pixels, count);
        });
      });
    }
    if (task.sums) run.kernels().sum(to.row(task.y), to.pixel, task.count * to.w, columns, task.sums);
  }
};

const StepKind kind = step_kind<Multiply>(13);

}  // namespace
}  // namespace ghost
