// The kernels of csrc/cuda in the emulator, for Python (tests/cuda/emulate.py): with any tile, in any order of threads.
#include "cuda/plan.h"
#include "run.h"

using namespace ghost::cuda;

namespace {

template <class Launch>
const char* any(int dtype, const Launch& call, int order) {
  return dtype == 0 ? run<float>(call, order) : dtype == 1 ? run<float16>(call, order) : run<bfloat16>(call, order);
}

}  // namespace

extern "C" {

/// A plan for this tile; 1 where there is one that fits.
int ghost_emulated_plan(const Block* block, int element, int shared, int tile_height, int tile_width, int threads,
                        int kept, Plan* plan) {
  const auto found = plan_of_tile(*block, element, tile_height, tile_width, threads, kept);
  if (found) *plan = *found;
  return found.has_value() && plan->shared <= shared;
}

/// Elements from one row of shared memory to the next.
int ghost_emulated_row(int lanes, int element) { return row(lanes, element); }

/// How many of a plan's tiles need more pixels of a map than shared memory was laid out for.
int ghost_emulated_tiles_too_large(const Block* block, const Plan* plan) {
  const Regions most = largest(*block, *plan);
  int count = 0;
  for (int tile = 0; tile < plan->tiles(); tile++) {
    const Regions r = regions(*block, *plan, tile, false);
    count += r.x.pixels() > most.x.pixels() || r.expanded.pixels() > most.expanded.pixels() ||
             r.inner.pixels() > most.inner.pixels() || r.out.pixels() > most.out.pixels();
  }
  return count;
}

/// dtype: 0 float32, 1 float16, 2 bfloat16. Returns null or what went wrong.
const char* ghost_emulated_run(const Block* b, const Plan* p, int dtype, int64_t images, const void* x,
                               const void* matrices, const float* vectors, void* out, float* sums, void* squeeze,
                               const void* residual, const void* scale, int vectors_of_x, int order) {
  const Call call{*b,   *p,      images,   x,     matrices,          vectors, out,
                  sums, squeeze, residual, scale, vectors_of_x != 0, nullptr, 0};
  return any(dtype, call, order);
}

const char* ghost_emulated_gather(int dtype, void* matrices, float* vectors, const float* packed, const int32_t* index,
                                  int64_t count, int64_t all, int order) {
  const Gather call{matrices, vectors, packed, index, count, all, nullptr};
  return any(dtype, call, order);
}

/// Leaves out the barrier in this line of this file; a line of 0: none.
void ghost_emulated_leave_out(const char* file, int line) {
  emulated::left_out_file = file, emulated::left_out_line = line;
}

/// What the emulator says of a block whose odd threads, or the odd lanes of whose warps, part from the others.
const char* ghost_emulated_parted(int warps) {
  return emulated::run(1, 64, 0, emulated::kForward, 0, [=](unsigned char*) {
    if (warps) {
      thread() % 2 ? sync_warp() : static_cast<void>(shuffle_xor(1.f, 1));
    } else if (thread() % 2) {
      sync_block();
    } else {
      sync_block();
    }
  });
}
}
