// The map that is returned.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Store final : public Step {
 public:
  explicit Store(StepReader& r) : output_(r.outputs()) { r.read_map(*this, r.slot(), 0); }

  bool returns_map() const override { return true; }

  void run_phase(ProgramRun& run, int64_t, int64_t share) const override {
    if (run.is_written_in_place(output_)) return;
    const Value v = run.value(sources[0]);
    const Map& out = run.out(output_);
    const Region g = run.region(*this, share);
    v.channels->each([&](int64_t lane, int64_t channel, int64_t count) {
      run.kernels().scatter(v.row(g.row0) + lane, v.w * v.pixel, v.pixel, g.row1 - g.row0, v.w, count,
                            {out.at(run.image(), g.row0, channel), out.bf16, out.channel, out.row, out.pixel});
    });
  }

 private:
  int64_t output_;  // among those that the program returns
};

const StepKind kind = step_kind<Store>(7);

}  // namespace
}  // namespace ghost
