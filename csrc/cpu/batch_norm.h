// BatchNorms over batch statistics: the statistics from rows of the groups of a pass, and the backward.
//
// Each group of a pass, one a thread, keeps its own partial sums, which are combined in the groups' order: results
// repeat to the bit at the same number of threads.
#pragma once
#include <vector>

#include "halves.h"

namespace ghost {

/// Sums over groups, in their order: total[i] = sum of part[g * stride + i].
std::vector<double> combine(const float* parts, int64_t groups, int64_t stride, int64_t count);

/// The same of a weight's gradient, which the groups have as [c][padded(m)]: [m][c].
const float* transposed_sums(const float* parts, int64_t groups, int64_t c, int64_t m, Scratch& scratch);

/// One convolution's BatchNorm with its activation, as coefficients per channel (all padded).
struct BatchNormState {
  int64_t channels = 0;
  Act act = kNone;
  const float *slope = nullptr, *gamma = nullptr, *beta = nullptr;  // gamma, beta: null where not affine
  double eps = 0;
  float *mean = nullptr, *var = nullptr;     // biased
  float *scale = nullptr, *shift = nullptr;  // y = act(z * scale + shift)

  Affine affine() const { return {scale, shift, act, slope}; }
  double inverse_std(int64_t c) const;
  void allocate(Scratch& scratch);
  void set_affine();  // scale and shift from mean and var
};

/// Mean and variance by shifted sums within a group, and Chan's formula over the groups, in double.
class Moments {
 public:
  Moments(int64_t groups, int64_t channels, Scratch& scratch)
      : groups_(groups),
        channels_(channels),
        pad_(sum_floats(channels)),
        sums_(scratch.zeros(3 * groups * pad_)),
        counts_(groups) {}

  void add(int64_t group, const float* z, int64_t z_pixel, int64_t pixels) {
    float *origin = sums_ + 3 * group * pad_, *sum = origin + pad_, *square = sum + pad_;
    if (counts_[group] == 0) {  // about the mean: a single pixel may be far out, and the sums would cancel
      std::vector<double> first(channels_);
      for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels_; c++) first[c] += z[i * z_pixel + c];
      for (int64_t c = 0; c < channels_; c++) origin[c] = static_cast<float>(first[c] / pixels);
    }
    counts_[group] += pixels;
    kernels().moments(z, z_pixel, pixels, channels_, origin, sum, square);
  }

  void finish(float* mean, float* var) const {
    for (int64_t c = 0; c < channels_; c++) {
      double count = 0, m = 0, squares = 0;
      for (int64_t g = 0; g < groups_; g++) {
        const double n = static_cast<double>(counts_[g]);
        if (n == 0) continue;
        const float* sums = sums_ + 3 * g * pad_ + c;
        const double sum = sum_of(sums + pad_, channels_), mine = sums[0] + sum / n;
        const double spread = sum_of(sums + 2 * pad_, channels_) - sum * sum / n;
        const double delta = mine - m;
        squares += spread + delta * delta * count * n / (count + n);
        m += delta * n / (count + n);
        count += n;
      }
      mean[c] = static_cast<float>(m);
      var[c] = static_cast<float>(squares > 0 || squares != squares ? squares / count : 0.0);
    }
  }

 private:
  int64_t groups_, channels_, pad_;
  float* sums_;  // origin, sum, sum of squares of each group
  std::vector<int64_t> counts_;
};

/// A BatchNorm in the backward: partial sums of the groups, then the coefficients that they give.
struct NormGradient {
  const BatchNormState* norm;
  int64_t groups, pad;
  float* sums;  // [group][g, g (z - mean), slope], each of sum_floats(channels)
  float *k, *c0, *c1;

  NormGradient(const BatchNormState& norm, int64_t channels, int64_t groups, Scratch& scratch)
      : norm(&norm),
        groups(groups),
        pad(sum_floats(channels)),
        sums(scratch.zeros(groups * 3 * pad)),
        k(scratch.zeros(pad)),
        c0(scratch.zeros(pad)),
        c1(scratch.zeros(pad)) {}

  float* of(int64_t group, int64_t which) const { return sums + (group * 3 + which) * pad; }

  /// What every call of the kernel has in common.
  NormBackward call(int64_t pixels, int64_t channels, const Rows& z, const Rows& grad) const {
    NormBackward b{};
    b.pixels = pixels, b.channels = channels;
    b.z = z.data, b.z_pixel = z.pixel;
    b.grad = grad.data, b.grad_pixel = grad.pixel;
    b.affine = norm->affine(), b.mean = norm->mean;
    return b;
  }

  void add_sums(int64_t group, NormBackward b) const {
    b.sum_g = of(group, 0), b.sum_gz = of(group, 1), b.sum_slope = norm->act == kPrelu ? of(group, 2) : nullptr;
    kernels().norm_backward_sums(b);
  }

  void write(NormBackward b, float* out, int64_t out_pixel) const {
    b.k = k, b.c0 = c0, b.c1 = c1;
    b.out = out, b.out_pixel = out_pixel;
    kernels().norm_backward(b);
  }

  /// Gradients of gamma, beta and PReLU's weight of the first `channels` channels, and the coefficients of `write`.
  void finish(int64_t channels, int64_t values, float* grad_gamma, float* grad_beta, float* grad_slope) const {
    const std::vector<double> total = combine(sums, groups, 3 * pad, 3 * pad);
    for (int64_t c = 0; c < channels; c++) {
      const auto sum = [&](int64_t which) { return total[which * pad + c] - total[which * pad + pad / 2 + c]; };
      const double inverse = norm->inverse_std(c), g = sum(0), gz = sum(1);
      grad_gamma[c] = static_cast<float>(gz * inverse);
      grad_beta[c] = static_cast<float>(g);
      grad_slope[c] = static_cast<float>(sum(2));
      k[c] = static_cast<float>(inverse * (norm->gamma ? norm->gamma[c] : 1.0));
      c0[c] = static_cast<float>(g / static_cast<double>(values));
      c1[c] = static_cast<float>(gz * inverse * inverse / static_cast<double>(values));
    }
  }
};

/// A gradient in its parameter's dtype, or an empty tensor where there is none.
abi::Tensor given(const std::optional<abi::Tensor>& parameter, const float* grad, int64_t channels, abi::DType x);

}  // namespace ghost
