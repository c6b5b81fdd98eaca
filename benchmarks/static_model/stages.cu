// Each stage of csrc/cuda as a kernel by itself, so that its loops can be told apart in the machine code. Compiled by
// benchmarks/static_model/cuda.py, never run.
#include "cuda/launch.h"
#include "cuda/strip_kernel.h"

using namespace ghost::cuda;
using float32 = float;
using T = GHOST_DTYPE;

#define GHOST_STAGE_ALONE(name, call)                                                                  \
  extern "C" __global__ void __launch_bounds__(512, 1)                                                 \
      name(const __grid_constant__ Launch launch, const __grid_constant__ Arguments<T> a, int index) { \
    extern __shared__ __align__(128) unsigned char shared[];                                           \
    const Work<T> w{launch, a, shared, reinterpret_cast<Shared*>(shared)->steps[0]};                        \
    Stage g = launch.stage[index + own_zero()];                                                        \
    g.low = 0.f, g.high = kNoBound; /* ReLU, the frequent one */                                       \
    call;                                                                                              \
  }

GHOST_STAGE_ALONE(product_stage, (g.depth = 1, matrix_product<kWideTile, 4, Weights::kept>(w, g)))
GHOST_STAGE_ALONE(product_tall, (g.depth = 1, matrix_product<kTallTile, 2, Weights::kept>(w, g)))
GHOST_STAGE_ALONE(product_small, (g.depth = 1, matrix_product<kSmallTile, 2, Weights::kept>(w, g)))
GHOST_STAGE_ALONE(product_deep, (matrix_product<kWideTile, 4, Weights::read>(w, g)))
GHOST_STAGE_ALONE(product_small_deep, (matrix_product<kSmallTile, 2, Weights::read>(w, g)))
GHOST_STAGE_ALONE(product_ahead, (matrix_product<1, 4, Weights::ahead>(w, g)))
GHOST_STAGE_ALONE(depthwise_3_1, (diagonal_stage<3, 1, kHighTile>(w, g)))
GHOST_STAGE_ALONE(depthwise_3_2, (diagonal_stage<3, 2, kHighTile>(w, g)))
GHOST_STAGE_ALONE(depthwise_5_1_low, (diagonal_stage<5, 1, kLowTile>(w, g)))
GHOST_STAGE_ALONE(depthwise_3_1_low, (diagonal_stage<3, 1, kLowTile>(w, g)))
GHOST_STAGE_ALONE(depthwise_3_2_low, (diagonal_stage<3, 2, kLowTile>(w, g)))
GHOST_STAGE_ALONE(depthwise_5_2_low, (diagonal_stage<5, 2, kLowTile>(w, g)))
GHOST_STAGE_ALONE(load_stage, (load_vectors<16>(w, g, w.rows(w.map(g.out)))))
GHOST_STAGE_ALONE(store_stage, (g.keep = 0, g.tensor = kNoMap, store_vectors<kVector<T>, kVector<T>, false>(w, g)))
GHOST_STAGE_ALONE(store_parts, (g.keep = 0, g.tensor = kNoMap, store_vectors<kVector<T>, kVector<T> / 2, false>(w, g)))
GHOST_STAGE_ALONE(store_added, (g.keep = 0, g.tensor = kResidual,
                                store_vectors<kVector<T>, kVector<T> / 2, false>(w, g)))
GHOST_STAGE_ALONE(window_stage, load_windows(w, g))
GHOST_STAGE_ALONE(scale_stage, scale_vectors<kVector<T>>(w, g))
GHOST_STAGE_ALONE(activate_stage, activate(w, g))
GHOST_STAGE_ALONE(sum_stage, sum(w, g))
GHOST_STAGE_ALONE(mean_stage, mean(w, g))
