// The planner as functions for ctypes, which ghost_ops/backends/cuda/plan.py calls.
#include <cstring>

#include "check.h"
#include "traffic.h"

using namespace ghost::cuda;

#define GHOST_PLANNER_API extern "C" __attribute__((visibility("default")))

namespace {

/// What Python is told of a launch, in this order: backends/cuda/plan.py.
struct Told {
  Run run;
  int32_t threads, shared, grid, band, strip, step, bands, strips, chunks;
};
constexpr int kTold = sizeof(Told) / sizeof(int32_t);

}  // namespace

/// How many launches a chain of `count` blocks has on a device, and what there is to say of each; 0 where a block fits
/// in no way, or is none. There is room for three launches a block. `predicted`: of each the cycles and the
/// instructions of warps that the planner expects. `moved`: bytes of global memory that move so, and module by module.
GHOST_PLANNER_API int ghost_ops_cuda_plan(const Block* first, int count, int element, int64_t images, int processors,
                                          int shared, int32_t* told, double* predicted, int64_t* moved) {
  const std::vector<Block> blocks(first, first + count);
  if (validate(blocks, INT64_MAX, INT64_MAX, element == 2)) return 0;
  const Plan plan = make_plan(blocks, element, images, {processors, shared});
  if (plan.empty()) return 0;
  for (const Part& part : plan) {
    const Launch& l = part.launch;
    const Told one{part.run, l.threads, l.shared, l.grid, l.band, l.strip, l.step, l.bands, l.strips, l.chunks};
    std::memcpy(told, &one, sizeof one), told += kTold;
    *predicted++ = part.cycles, *predicted++ = all_instructions(l, element, images);
  }
  const Traffic t = traffic(blocks, plan, element, images);
  moved[0] = t.fused, moved[1] = t.by_module;
  return static_cast<int>(plan.size());
}

/// How many numbers a block (0) and what is told of a launch (1) have.
GHOST_PLANNER_API int ghost_ops_cuda_numbers(int of_launch) { return of_launch ? kTold : kBlockNumbers; }
