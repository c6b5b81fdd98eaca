#include "weights.h"

#include "isa.h"
#include "kernels/bfloat16.h"

namespace ghost {
namespace {

void pack_float32(const float* weight, int64_t n, int64_t k, const float* scale, float* out) {
  kernels().pack({weight, k, 1, n, k, scale, nullptr, out});
}

constexpr WeightFormat kFormats[] = {
    {0, "float32", abi::DType::float32, 1, false, &Kernels::gemm, pack_float32},
    {1, "bfloat16", abi::DType::int32, 2, true, &Kernels::gemm_bf16, pack_bf16},
};

}  // namespace

const WeightFormat* weight_format(int64_t precision) {
  for (const WeightFormat& f : kFormats)
    if (f.precision == precision) return &f;
  return nullptr;
}

}  // namespace ghost
