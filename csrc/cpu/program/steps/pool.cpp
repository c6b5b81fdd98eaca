// The squeeze as features.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Pool final : public Step {
 public:
  explicit Pool(StepReader& r) {
    channels = r.channels("channels");
    if (r.squeeze != channels) r.refuse("a pooling without the squeeze of as many channels");
    r.begin_features(channels);
  }

  bool makes_features() const override { return true; }
  bool begins_features() const override { return true; }

  Needs needs(const StepPlan&) const override {
    Needs n;
    n.features = by_eight(channels);
    return n;
  }

  void run_phase(ProgramRun& run, int64_t, int64_t share) const override {
    if (share == 0) std::copy_n(run.mean(), channels, run.features(*this));
  }
};

const StepKind kind = step_kind<Pool>(5);

}  // namespace
}  // namespace ghost
