// Channel shuffle.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Shuffle final : public Step {
 public:
  explicit Shuffle(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    const Channels from = r.read_map(*this, source, r.channels("channels")).channels;
    const int64_t groups = r.within(1, channels, "groups"), each = channels / groups;
    if (channels % groups) r.refuse("groups that do not divide the channels");
    out_channels = {channels}, columns = out_channels.width();
    lanes_.resize(channels);
    from.each([&](int64_t lane, int64_t channel, int64_t count) {
      for (int64_t c = channel; c < channel + count; c++)
        lanes_[c % each * groups + c / each] = static_cast<int32_t>(lane + c - channel);
    });
  }

  Work work() const override { return {0, channels}; }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value from = run.value(sources[0]), &to = run.value(*this);
    for (int64_t y = task.y; y < task.y + task.count; y++)
      for (int64_t x = 0; x < to.w; x++) {
        const float* p = from.row(y) + x * from.pixel;
        float* q = to.row(y) + x * to.pixel;
        for (int64_t c = 0; c < channels; c++) q[c] = p[lanes_[c]];
        std::fill(q + channels, q + columns, 0.f);
      }
  }

 private:
  std::vector<int32_t> lanes_;  // of the source, that each channel comes from
};

const StepKind kind = step_kind<Shuffle>(14);

}  // namespace
}  // namespace ghost
