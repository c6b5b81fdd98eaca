// The planner as functions for ctypes, which ghost_ops/backends/cuda/plan.py calls.
#include <cstring>

#include "check.h"
#include "traffic.h"

using namespace ghost::cuda;

#define GHOST_PLANNER_API extern "C" __attribute__((visibility("default")))

namespace {

/// What Python is told of a launch, in this order: backends/cuda/plan.py.
struct Told {
  int32_t piece, threads, shared, grid, band, strip, step, bands, strips, chunks;
};
constexpr int kTold = sizeof(Told) / sizeof(int32_t);

}  // namespace

/// How many launches a block has on a device, and what there is to say of each; 0 where nothing fits, or the block is
/// none. `predicted`: of each the cycles and the instructions of warps that the planner expects. `moved`: bytes of
/// global memory that move so, and module by module.
GHOST_PLANNER_API int ghost_ops_cuda_plan(const Block* block, int element, int64_t images, int processors, int shared,
                                          int32_t* told, double* predicted, int64_t* moved) {
  if (validate(*block, INT64_MAX, INT64_MAX, element == 2)) return 0;
  const auto plan = make_plan(*block, element, images, {processors, shared});
  if (!plan) return 0;
  for (int i = 0; i < plan->launches; i++) {
    const Launch& l = plan->launch[i];
    const Told one{static_cast<int32_t>(plan->piece[i]),
                   l.threads,
                   l.shared,
                   l.grid,
                   l.band,
                   l.strip,
                   l.step,
                   l.bands,
                   l.strips,
                   l.chunks};
    std::memcpy(told + i * kTold, &one, sizeof one);
    predicted[2 * i] = estimate(l, element, images, {processors, shared});
    predicted[2 * i + 1] = all_instructions(l, element, images);
  }
  const Traffic t = traffic(*block, *plan, element, images);
  moved[0] = t.fused, moved[1] = t.by_module;
  return plan->launches;
}

/// How many numbers a block (0) and what is told of a launch (1) have.
GHOST_PLANNER_API int ghost_ops_cuda_numbers(int of_launch) { return of_launch ? kTold : kBlockNumbers; }
