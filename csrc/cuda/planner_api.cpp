// The planner as functions for ctypes, which ghost_ops/backends/cuda/plan.py calls.
#include "check.h"

using namespace ghost::cuda;

#define GHOST_PLANNER_API extern "C" __attribute__((visibility("default")))

/// The plan for a block on a device; 0 where no tile fits, or the block is none.
GHOST_PLANNER_API int ghost_ops_cuda_plan(const Block* block, int element, int64_t images, int processors, int shared,
                                          Plan* plan) {
  if (validate(*block, INT64_MAX, INT64_MAX)) return 0;
  const auto found = make_plan(*block, element, images, {processors, shared});
  if (found) *plan = *found;
  return found.has_value();
}

/// Bytes of global memory that the block moves so, and its modules one by one.
GHOST_PLANNER_API void ghost_ops_cuda_traffic(const Block* block, const Plan* plan, int element, int64_t images,
                                              int64_t* fused, int64_t* by_module) {
  const Traffic found = traffic(*block, *plan, element, images);
  *fused = found.fused, *by_module = found.by_module;
}

/// How many numbers a block (0) and a plan (1) have.
GHOST_PLANNER_API int ghost_ops_cuda_numbers(int of_plan) { return of_plan ? kPlanNumbers : kBlockNumbers; }
