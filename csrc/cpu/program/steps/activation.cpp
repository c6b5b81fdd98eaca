// An activation that follows no convolution, such as that of a sum.
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Activation final : public Step {
 public:
  explicit Activation(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot(), squeeze = r.flag("squeeze");
    r.read_map(*this, source, r.channels("channels"));
    layer_ = r.layer();
    if (layer_.has_bias || layer_.has_norm || layer_.has_gamma || layer_.has_beta)
      r.refuse("an activation with parameters of a convolution");
    keep_channels();
    r.place_slopes(layer_, columns);
  }

  void pack(Packer& packer) const override { packer.lanes_epilogue(layer_, out_channels, false); }

  Work work() const override { return {0, channels, 0, true}; }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    const int64_t lanes = from.lanes(task.c0, task.c1);
    float* first = to.row(task.y) + task.c0;
    for (int64_t y = task.y; y < task.y + task.count; y++)
      run.kernels().affine(from.row(y) + task.c0, from.pixel,
                           {nullptr, nullptr, layer_.act, run.packed(layer_.slopes) + task.c0}, to.row(y) + task.c0,
                           to.pixel, to.w, lanes);
    if (task.sums) run.kernels().sum(first, to.pixel, task.count * to.w, lanes, task.sums);
  }

 private:
  Layer layer_;
};

const StepKind kind = step_kind<Activation>(9);

}  // namespace
}  // namespace ghost
