// The input as a map.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Load final : public Step {
 public:
  explicit Load(StepReader& r) {
    out = r.slot(), channels = columns = r.channels("channels"), whole_vectors = r.flag("by_lanes");
    out_channels = {channels, 0};
  }

  bool is_entry() const override { return true; }
  bool makes_all_rows_at_once() const override { return true; }
  /// Where whole vectors are read, pixels must follow each other: as wide is the row of zeros outside of the map.
  bool reads_in_place(const Map& x) const override { return !whole_vectors || (x.c % 8 == 0 && x.pixel == x.c); }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value& v = run.value(*this);
    const Map& x = run.x();
    if (v.is_padded)
      run.kernels().gather({x.at(run.image(), task.y), x.bf16, x.channel, x.row, x.pixel}, task.count, x.w, x.c,
                           v.row(task.y), v.w * v.pixel, v.pixel);
  }
};

const StepKind kind = step_kind<Load>(0);

}  // namespace
}  // namespace ghost
