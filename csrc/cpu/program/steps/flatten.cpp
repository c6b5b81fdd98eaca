// All numbers of a map as features.
#include <stdexcept>
#include <string>

#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Flatten final : public Step {
 public:
  explicit Flatten(StepReader& r) {
    const int64_t source = r.slot();
    r.read_map(*this, source, r.channels("channels"));
    features_ = r.channels("features");
    if (features_ % channels) r.refuse("features of a part of a map");
    r.begin_features(features_);
  }

  bool makes_features() const override { return true; }
  bool begins_features() const override { return true; }

  bool set_size(StepPlan& s) const override {
    if (channels * s.in_h * s.in_w == features_) return true;
    throw std::runtime_error("ghost_ops.program: x: expected a size of which " + std::to_string(features_) +
                             " features come, got one of which come " + std::to_string(channels) + " x " +
                             std::to_string(s.in_h) + " x " + std::to_string(s.in_w));
  }
  Needs needs(const StepPlan&) const override {
    Needs n;
    n.features = by_eight(features_);
    return n;
  }

  void run_phase(ProgramRun& run, int64_t, int64_t share) const override {
    if (share > 0) return;
    const Value x = run.value(sources[0]);
    auto* to = reinterpret_cast<char*>(run.features(*this));
    const int64_t pixels = x.h * x.w;
    x.channels->each([&](int64_t lane, int64_t channel, int64_t count) {
      run.kernels().scatter(x.row(0) + lane, x.w * x.pixel, x.pixel, x.h, x.w, count,
                            {to + 4 * channel * pixels, false, pixels, x.w, 1});
    });
  }

 private:
  int64_t features_;
};

const StepKind kind = step_kind<Flatten>(20);

}  // namespace
}  // namespace ghost
