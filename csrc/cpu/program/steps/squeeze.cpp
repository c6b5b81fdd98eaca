// The squeeze of a map whose step makes none, such as a slice.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Squeeze final : public Step {
 public:
  explicit Squeeze(StepReader& r) {
    const int64_t source = r.slot();
    r.read_vectors(*this, source, r.channels("channels"));
    squeeze = true;
    keep_channels();
  }

  Work work() const override { return {0, channels}; }

  /// One thread does all at once; several sum their rows, and one of them puts the sums together.
  void run_phase(ProgramRun& run, int64_t phase, int64_t share) const override {
    if (phase == 0) add_rows(run, share);
    if (run.shares() == 1 || (phase == 1 && share == 0)) take_all_means(run);
  }

 private:
  void add_rows(ProgramRun& run, int64_t share) const {
    const Value x = run.value(sources[0]);
    const Region g = run.region(*this, share);
    run.clear_sums(*this, share);
    for (int64_t y = g.row0; y < g.row1; y++)
      run.kernels().sum(x.row(y), x.pixel, x.w, x.lanes(0, columns), run.sums_of(*this, share));
  }

  void take_all_means(ProgramRun& run) const {
    const Value x = run.value(sources[0]);
    x.channels->each([&](int64_t lane, int64_t channel, int64_t count) {
      run.take_means(run.sums_of(*this, 0) + lane, run.shares(), count, x.lanes(0, columns), x, run.mean() + channel);
    });
  }
};

const StepKind kind = step_kind<Squeeze>(18);

}  // namespace
}  // namespace ghost
