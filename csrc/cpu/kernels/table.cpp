// The table of one instruction set's kernels.
#include <type_traits>

#include "kernels.h"

#define GHOST_STRING2(isa) #isa
#define GHOST_STRING(isa) GHOST_STRING2(isa)

// In the order in which ghost::Kernels has them.
// clang-format off
#define GHOST_KERNELS(K)                                                                                       \
  K(gemm) K(gemm_bf16) K(release_tiles) K(pack) K(fold) K(depthwise) K(depthwise_row) K(depthwise_weight_grad) \
  K(depthwise_input_grad) K(axis_conv) K(axis_weight_grad) K(multiply_upsampled) K(sum_downsampled)            \
  K(upsample_bilinear) K(pool_pairs) K(unpool_pairs) K(affine) K(scale_rows) K(add) K(take_largest)             \
  K(scale_panels) K(sum)                                                                                       \
  K(sum_in_double) K(sum_product) K(moments) K(norm_backward_sums) K(norm_backward) K(matvec) K(gather)        \
  K(scatter) K(fma_chain)
// clang-format on
#define GHOST_DECLARE(name) std::remove_pointer_t<decltype(ghost::Kernels::name)> GHOST_SYMBOL(name);
#define GHOST_ENTRY(name) GHOST_SYMBOL(name),

extern "C" {
GHOST_KERNELS(GHOST_DECLARE)

extern const ghost::Kernels GHOST_SYMBOL(kernels);
const ghost::Kernels GHOST_SYMBOL(kernels) = {GHOST_STRING(GHOST_ISA), GHOST_KERNELS(GHOST_ENTRY)};
}
