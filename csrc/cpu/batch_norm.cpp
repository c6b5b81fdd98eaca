#include "batch_norm.h"

#include <cmath>

namespace ghost {

double BatchNormState::inverse_std(int64_t c) const { return 1.0 / std::sqrt(static_cast<double>(var[c]) + eps); }

void BatchNormState::allocate(Scratch& scratch) {
  for (float** p : {&mean, &var, &scale, &shift}) *p = scratch.zeros(padded(channels));
}

void BatchNormState::set_affine() {
  for (int64_t c = 0; c < channels; c++) {
    const double s = inverse_std(c) * (gamma ? gamma[c] : 1.0);
    scale[c] = static_cast<float>(s);
    shift[c] = static_cast<float>((beta ? beta[c] : 0.0) - mean[c] * s);
  }
}

std::vector<double> combine(const float* parts, int64_t groups, int64_t stride, int64_t count) {
  std::vector<double> total(count);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t i = 0; i < count; i++) total[i] += parts[g * stride + i];
  return total;
}

abi::Tensor given(const std::optional<abi::Tensor>& parameter, const float* grad, int64_t channels, abi::DType x) {
  if (!parameter) return abi::empty({0}, x);
  if (parameter->numel() == channels) return result(grad, {channels}, parameter->dtype());
  double total = 0;
  for (int64_t c = 0; c < channels; c++) total += grad[c];
  const float sum = static_cast<float>(total);
  return result(&sum, {1}, parameter->dtype());
}

}  // namespace ghost
