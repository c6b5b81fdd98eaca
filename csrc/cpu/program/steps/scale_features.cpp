// Features, each times a number of its own plus another: a BatchNorm, with the activation after it.
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class ScaleFeatures final : public Step {
 public:
  explicit ScaleFeatures(StepReader& r) {
    channels = columns = r.channels("channels"), layer_ = r.layer();
    if (r.features != channels) r.refuse("a scale of other features");
    r.place(layer_, channels, channels);
  }

  bool makes_features() const override { return true; }

  void pack(Packer& packer) const override {
    const float* weight = packer.weight({channels, 1, 1, 1});
    const float* scale = packer.epilogue(layer_, channels);
    packer.taps(layer_, weight, 1, scale, Channels{channels}, padded(channels));
  }

  Needs needs(const StepPlan&) const override {
    Needs n;
    n.features = by_eight(channels);
    return n;
  }

  void run_phase(ProgramRun&, int64_t, int64_t) const override {}

  bool run_features(const FeatureRows& f) const override {
    const float *scale = f.packed + layer_.weight, *shift = f.packed + layer_.bias;
    kernels().affine(f.from, f.row, {scale, shift, layer_.act, f.packed + layer_.slopes}, f.to, f.row, f.images,
                     channels);
    return true;
  }

 private:
  Layer layer_;
};

const StepKind kind = step_kind<ScaleFeatures>(21);

}  // namespace
}  // namespace ghost
