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

const float* transposed_sums(const float* parts, int64_t groups, int64_t c, int64_t m, Scratch& scratch) {
  constexpr int64_t kTile = 16;  // columns of a tile are whole lines of the sums, rows of those of the result
  const int64_t pad = padded(m);
  float* out = scratch.floats(m * c);
  for (int64_t c0 = 0; c0 < c; c0 += kTile)
    for (int64_t j0 = 0; j0 < m; j0 += kTile)
      for (int64_t i = c0; i < std::min(c, c0 + kTile); i++)
        for (int64_t j = j0; j < std::min(m, j0 + kTile); j++) {
          double total = 0;
          for (int64_t g = 0; g < groups; g++) total += parts[(g * c + i) * pad + j];
          out[j * c + i] = static_cast<float>(total);
        }
  return out;
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
