// The map that is returned.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Store final : public Step {
 public:
  explicit Store(StepReader& r) { r.read_map(*this, r.slot(), 0); }

  bool returns_map() const override { return true; }

  void run_phase(ProgramRun& run, int64_t, int64_t share) const override {
    if (run.is_written_in_place(in)) return;
    const Value& v = run.value(in);
    const Map& out = run.out();
    const Region g = run.region(*this, share);
    const auto half = [&](int64_t at, int64_t channel, int64_t channels) {
      if (channels > 0)
        run.kernels().scatter(v.row(g.row0) + at, v.w * v.pixel, v.pixel, g.row1 - g.row0, v.w, channels,
                              {out.at(run.image(), g.row0, channel), out.bf16, out.channel, out.row, out.pixel});
    };
    half(0, 0, v.channels.first);
    half(v.second_at, v.channels.first, v.channels.second);
  }
};

const StepKind kind = step_kind<Store>(7);

}  // namespace
}  // namespace ghost
