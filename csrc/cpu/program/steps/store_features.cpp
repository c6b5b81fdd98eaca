// The features as they are now, which are returned.
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class StoreFeatures final : public Step {
 public:
  explicit StoreFeatures(StepReader& r) {
    channels = columns = r.channels("channels");
    if (r.features != channels) r.refuse("a result of other features");
  }

  bool returns_features() const override { return true; }

  void run_phase(ProgramRun&, int64_t, int64_t) const override {}  // the features are there once all images are done
};

const StepKind kind = step_kind<StoreFeatures>(19);

}  // namespace
}  // namespace ghost
