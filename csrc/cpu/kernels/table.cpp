// The table of one instruction set's kernels.
#include "kernels.h"

#define GHOST_STRING2(isa) #isa
#define GHOST_STRING(isa) GHOST_STRING2(isa)

extern "C" {
void GHOST_SYMBOL(gemm)(const ghost::Gemm&);
void GHOST_SYMBOL(gemm_bf16)(const ghost::Gemm&);
void GHOST_SYMBOL(release_tiles)();
void GHOST_SYMBOL(pack)(const ghost::Pack&);
void GHOST_SYMBOL(fold)(const ghost::Fold&);
void GHOST_SYMBOL(depthwise)(const ghost::Depthwise&);
void GHOST_SYMBOL(depthwise_weight_grad)(const ghost::DepthwiseWeightGrad&);
void GHOST_SYMBOL(depthwise_input_grad)(const ghost::DepthwiseInputGrad&);
void GHOST_SYMBOL(affine)(const float*, int64_t, const ghost::Affine&, float*, int64_t, int64_t, int64_t);
void GHOST_SYMBOL(add)(const float*, int64_t, const float*, int64_t, float*, int64_t, int64_t, int64_t);
void GHOST_SYMBOL(scale_panels)(const float*, const float*, int64_t, int64_t, float*);
void GHOST_SYMBOL(sum)(const float*, int64_t, int64_t, int64_t, float*);
void GHOST_SYMBOL(sum_in_double)(const float*, int64_t, int64_t, int64_t, float*);
void GHOST_SYMBOL(sum_product)(const float*, int64_t, const float*, int64_t, int64_t, int64_t, float*);
void GHOST_SYMBOL(moments)(const float*, int64_t, int64_t, int64_t, const float*, float*, float*);
void GHOST_SYMBOL(norm_backward_sums)(const ghost::NormBackward&);
void GHOST_SYMBOL(norm_backward)(const ghost::NormBackward&);
void GHOST_SYMBOL(matvec)(const float*, int64_t, int64_t, const float*, const float*, float*);
void GHOST_SYMBOL(gather)(const ghost::Strided&, int64_t, int64_t, int64_t, float*, int64_t, int64_t);
void GHOST_SYMBOL(scatter)(const float*, int64_t, int64_t, int64_t, int64_t, int64_t, const ghost::Strided&);
double GHOST_SYMBOL(fma_chain)(int64_t);

extern const ghost::Kernels GHOST_SYMBOL(kernels);
const ghost::Kernels GHOST_SYMBOL(kernels) = {
    GHOST_STRING(GHOST_ISA),
    GHOST_SYMBOL(gemm),
    GHOST_SYMBOL(gemm_bf16),
    GHOST_SYMBOL(release_tiles),
    GHOST_SYMBOL(pack),
    GHOST_SYMBOL(fold),
    GHOST_SYMBOL(depthwise),
    GHOST_SYMBOL(depthwise_weight_grad),
    GHOST_SYMBOL(depthwise_input_grad),
    GHOST_SYMBOL(affine),
    GHOST_SYMBOL(add),
    GHOST_SYMBOL(scale_panels),
    GHOST_SYMBOL(sum),
    GHOST_SYMBOL(sum_in_double),
    GHOST_SYMBOL(sum_product),
    GHOST_SYMBOL(moments),
    GHOST_SYMBOL(norm_backward_sums),
    GHOST_SYMBOL(norm_backward),
    GHOST_SYMBOL(matvec),
    GHOST_SYMBOL(gather),
    GHOST_SYMBOL(scatter),
    GHOST_SYMBOL(fma_chain),
};
}
