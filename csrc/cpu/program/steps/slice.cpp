// Some of a map's channels: a view, for which nothing is to be done.
#include "cpu/program/parse.h"

namespace ghost {
namespace {

std::unique_ptr<Step> parse(StepReader& r) {
  const Source& from = r.map_in(r.slot());
  const int64_t out = r.slot();
  const int64_t begin = r.within(0, from.channels.count() - 1, "first channel");
  const int64_t end = r.within(begin + 1, from.channels.count(), "end of the channels");
  Source some{from.step, 0, {}};
  some.channels = from.channels.sliced(begin, end, some.lane);
  some.lane += from.lane;
  r.view(out, std::move(some));
  return nullptr;
}

const StepKind kind(11, parse);

}  // namespace
}  // namespace ghost
