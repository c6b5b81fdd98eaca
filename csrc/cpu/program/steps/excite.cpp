// The excitation that comes of the squeeze: gate(expand(reduce(squeeze))).
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Excite final : public Step {
 public:
  explicit Excite(StepReader& r) {
    channels = r.channels("channels"), hidden_ = r.channels("hidden"), gate_ = r.within(0, kGates - 1, "gate");
    reduce_ = r.layer(), expand_ = r.layer();
    if (r.squeeze != channels) r.refuse("an excitation without the squeeze of as many channels");
    r.excitation = channels;
    r.place_vector_products(reduce_, hidden_, channels, expand_, channels, hidden_);
  }

  void pack(Packer& packer) const override {
    packer.product(reduce_, hidden_, channels);
    packer.product(expand_, channels, hidden_);
  }

  Work work() const override { return {2 * channels * hidden_}; }
  Needs needs(const StepPlan&) const override {
    Needs n;
    n.image_scratch = by_eight(hidden_);
    return n;
  }
  int64_t phases(const StepPlan&) const override { return 2; }

  void run_phase(ProgramRun& run, int64_t phase, int64_t share) const override {
    if (run.shares() == 1) return excite(run, 1);
    if (phase == 0)
      reduce(run, 1, share);
    else
      expand(run, 1, share);
  }
  bool run_images(ProgramRun& run, int64_t images) const override {
    excite(run, images);
    return true;
  }

 private:
  int64_t hidden_, gate_;
  Layer reduce_, expand_;

  void excite(ProgramRun& run, int64_t images) const {
    reduce(run, images, 0);
    expand(run, images, 0);
  }

  void reduce(ProgramRun& run, int64_t images, int64_t share) const {
    multiply(run, reduce_, run.mean(), channels, hidden_, run.image_scratch(), images, share);
  }

  void expand(ProgramRun& run, int64_t images, int64_t share) const {
    float* gates = run.excitation();
    multiply(run, expand_, run.image_scratch(), hidden_, channels, gates, images, share);
    const auto [c0, c1] = columns_of(channels, share, run.shares());
    if (c0 < c1)
      run.kernels().affine(gates + c0, run.image_row(), {nullptr, nullptr, act_of_gate(gate_), nullptr}, gates + c0,
                           run.image_row(), images, c1 - c0);
  }

  /// A share of the columns of a product with its activation, a row an image.
  static void multiply(const ProgramRun& run, const Layer& l, const float* a, int64_t k, int64_t n, float* to,
                       int64_t images, int64_t share) {
    const auto [c0, c1] = columns_of(n, share, run.shares());
    if (c0 >= c1) return;
    const float* bias = run.packed(l.bias) + c0;
    if (l.raw >= 0) {  // a call's own weights, of one image
      run.kernels().matvec(run.raw_weight(l) + c0 * k, c1 - c0, k, a, bias, to + c0);
      run.kernels().affine(to + c0, 0, {nullptr, nullptr, l.act, run.packed(l.slopes) + c0}, to + c0, 0, 1, c1 - c0);
      return;
    }
    const int64_t row = run.image_row();
    run.multiply({a, row, 1, images, k, c1 - c0, run.packed(l.weight) + c0 * run.format().depth(k), 0, bias, to + c0,
                  row, true, l.act == kRelu, false});
    run.activate(l, c0, to + c0, row, images, c1 - c0);
  }
};

const StepKind kind = step_kind<Excite>(4);

}  // namespace
}  // namespace ghost
