// A linear layer of the features: of all images at once, its columns shared out.
#include "abi_threads.h"
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Linear final : public Step {
 public:
  explicit Linear(StepReader& r) {
    channels = r.channels("channels"), columns = r.channels("out"), layer_ = r.layer();
    if (r.features != channels) r.refuse("a layer of other features");
    r.features = columns;
    r.place_product(layer_, columns, channels);
  }

  bool makes_features() const override { return true; }

  void pack(Packer& packer) const override { packer.product(layer_, columns, channels); }

  Work work() const override { return {channels * columns}; }
  Needs needs(const StepPlan&) const override {
    Needs n;
    n.features = by_eight(columns);
    return n;
  }

  void run_phase(ProgramRun&, int64_t, int64_t) const override {}

  bool run_features(const FeatureRows& f) const override {
    const Kernels& k = kernels();
    const WeightFormat& format = *f.program.format;
    const int64_t panels = padded(columns) / kPanel, flops = 2 * f.images * channels * kPanel;
    abi::parallel_for(panels, std::max<int64_t>(1, kShareFlops / flops), [&](int64_t begin, int64_t end) {
      const int64_t c0 = begin * kPanel, count = std::min(columns, end * kPanel) - c0;
      float* to = f.to + c0;
      (k.*format.gemm)({f.from, f.row, 1, f.images, channels, count,
                        f.packed + layer_.weight + c0 * format.depth(channels), 0, f.packed + layer_.bias + c0, to,
                        f.row, true, layer_.act == kRelu, false});
      if (layer_.act != kNone && layer_.act != kRelu)
        k.affine(to, f.row, {nullptr, nullptr, layer_.act, f.packed + layer_.slopes + c0}, to, f.row, f.images, count);
      k.release_tiles();
    });
    return true;
  }

 private:
  Layer layer_;
};

const StepKind kind = step_kind<Linear>(6);

}  // namespace
}  // namespace ghost
