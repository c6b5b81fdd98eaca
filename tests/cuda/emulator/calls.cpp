// The kernels of csrc/cuda in the emulator, and the planner, as functions for Python (tests/cuda/emulate.py).
#include "cuda/bottleneck.h"
#include "cuda/ghost_module.h"
#include "cuda/plan.h"

using namespace ghost::cuda;

namespace {

/// Runs one launch: `order` 0 forward, 1 backward, above that the seed of a random one.
template <class Kernel>
const char* launch(int64_t blocks, int threads, int shared, int order, const Kernel& kernel) {
  const auto kind = order == 0 ? emulated::kForward : order == 1 ? emulated::kBackward : emulated::kRandom;
  return emulated::run(blocks, threads, shared, kind, static_cast<uint32_t>(order), kernel);
}

template <class T>
const char* run(const Block& b, const Plan& p, int64_t images, const void* x, const void* matrices,
                const float* vectors, void* out, float* sums, void* squeeze, const void* residual, const void* scale,
                bool vectors_of_x, int order) {
  Arguments<T> a{
      static_cast<const T*>(x),        static_cast<const T*>(matrices), vectors,      static_cast<T*>(out), sums,
      static_cast<const T*>(residual), static_cast<const T*>(scale),    vectors_of_x, Phase::whole};
  if (!b.primary) {
    if (const char* why = launch(images * p.tiles(), p.threads, p.shared, order,
                                 [&](unsigned char* shared) { ghost_module<T>(b, p, a, shared); }))
      return why;
    if (!squeeze) return nullptr;
    const int64_t count = images * b.kept2;
    return launch((count + 255) / 256, 256, 0, order, [&](unsigned char*) {
      means<T>(static_cast<T*>(squeeze), sums, images, p.tiles(), b.kept2, int64_t{b.height} * b.width);
    });
  }
  for (int i = 0; i < p.launches; i++) {
    if (p.launches == 2) a.phase = i ? Phase::project : Phase::squeeze;
    if (const char* why = launch(images * p.tiles(), p.threads, p.shared, order,
                                 [&](unsigned char* shared) { bottleneck<T>(b, p, a, shared); }))
      return why;
  }
  return nullptr;
}

}  // namespace

extern "C" {

int ghost_emulated_numbers(int which) { return which ? kPlanNumbers : kBlockNumbers; }

/// A plan for this tile (0: the planner's choice), 1 where there is one.
int ghost_emulated_plan(const Block* block, int element, int64_t images, int processors, int shared, int tile_height,
                        int tile_width, int threads, int kept, Plan* plan) {
  if (!tile_height) {
    const auto found = make_plan(*block, element, images, {processors, shared});
    if (found) *plan = *found;
    return found.has_value();
  }
  const auto found = plan_of_tile(*block, element, tile_height, tile_width, threads, kept);
  if (found) *plan = *found;
  return found.has_value() && plan->shared <= shared;
}

void ghost_emulated_traffic(const Block* block, const Plan* plan, int element, int64_t images, int64_t* bytes) {
  const Traffic t = traffic(*block, *plan, element, images);
  bytes[0] = t.fused, bytes[1] = t.by_module;
}

/// dtype: 0 float32, 1 float16, 2 bfloat16. Returns null or what went wrong.
const char* ghost_emulated_run(const Block* b, const Plan* p, int dtype, int64_t images, const void* x,
                               const void* matrices, const float* vectors, void* out, float* sums, void* squeeze,
                               const void* residual, const void* scale, int vectors_of_x, int order) {
  const auto call = dtype == 0 ? run<float> : dtype == 1 ? run<float16> : run<bfloat16>;
  return call(*b, *p, images, x, matrices, vectors, out, sums, squeeze, residual, scale, vectors_of_x, order);
}

const char* ghost_emulated_gather(int dtype, void* matrices, float* vectors, const float* packed, const int32_t* index,
                                  int64_t count, int64_t all, int order) {
  return launch((all + 255) / 256, 256, 0, order, [&](unsigned char*) {
    if (dtype == 0)
      gather(static_cast<float*>(matrices), vectors, packed, index, count, all);
    else if (dtype == 1)
      gather(static_cast<float16*>(matrices), vectors, packed, index, count, all);
    else
      gather(static_cast<bfloat16*>(matrices), vectors, packed, index, count, all);
  });
}
}
