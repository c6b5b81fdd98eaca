// ghost_module_train_backward: B1 the sums of the cheap operation's BatchNorm; B2 its weight's gradient and the sums of
// the primary's BatchNorm; B3 the gradients of the primary weight and of x. Everything else is computed again from x.
#include "operator.h"
#include "train.h"

namespace ghost {
namespace {

constexpr int64_t kMostRows = 56 + 6;  // of a step and its halo

/// The BatchNorm of one half in the backward: partial sums of the groups, then the coefficients that they give.
struct NormGradient {
  const BatchNormState* half;
  int64_t groups, pad;
  float* sums;  // [group][g, g (z - mean), slope], each of sum_floats(channels)
  float *k, *c0, *c1;

  NormGradient(const BatchNormState& h, int64_t channels, int64_t groups, Scratch& scratch)
      : half(&h),
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
    b.affine = half->affine(), b.mean = half->mean;
    return b;
  }

  void add_sums(int64_t group, NormBackward b) const {
    b.sum_g = of(group, 0), b.sum_gz = of(group, 1), b.sum_slope = half->act == kPrelu ? of(group, 2) : nullptr;
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
      const double inverse = half->inverse_std(c), g = sum(0), gz = sum(1);
      grad_gamma[c] = static_cast<float>(gz * inverse);
      grad_beta[c] = static_cast<float>(g);
      grad_slope[c] = static_cast<float>(sum(2));
      k[c] = static_cast<float>(inverse * (half->gamma ? half->gamma[c] : 1.0));
      c0[c] = static_cast<float>(g / static_cast<double>(values));
      c1[c] = static_cast<float>(gz * inverse * inverse / static_cast<double>(values));
    }
  }
};

struct ModuleBackward {
  TrainContext t;
  Map grad_out, grad_x;
  int64_t kept;              // cheap channels that out has: the others have no gradient
  const float* flipped;      // the cheap weight for the gradient of its input
  const float* transposed;   // packed primary weight for the gradient of x
  float *grad_w1, *grad_w2;  // per group: [c][padded(m)], [taps] sums of kept channels
  float* through;            // gradient of y1 through the cheap operation: B2 leaves it for B3
  NormGradient norm1, norm2;

  int64_t taps() const { return t.cheap.kernel * t.cheap.kernel; }
  int64_t step() const { return step_rows(t.w, t.h); }
  /// Rows of `through`, from row y on.
  Rows through_rows(int64_t image, int64_t y) const {
    return {through + (image * t.h + y) * t.w * by_eight(t.m), by_eight(t.m)};
  }
  float* w1_of(int64_t group) const { return grad_w1 + group * t.c * padded(t.m); }
  float* w2_of(int64_t group) const { return grad_w2 + group * taps() * sum_floats(kept); }
};

/// z2 of rows y to y + count.
Rows cheap_product(const TrainContext& t, const PrimaryRows& primary, int64_t y, int64_t count, float* z2) {
  const float* rows[kMostRows];
  const int64_t in_pixel = primary.window(y, count, rows), pixel = by_eight(t.cheap.channels);
  kernels().depthwise({rows, in_pixel, count, t.w, t.cheap.channels, t.cheap.kernel, t.cheap.weight, t.cheap.weight_row,
                       nullptr, z2, t.w * pixel, pixel, false});
  return {z2, pixel};
}

void cheap_norm_sums(const ModuleBackward& b) {
  const TrainContext& t = b.t;
  const int64_t step = b.step(), halo = t.cheap.halo();
  t.for_units(false, [&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    PrimaryRows primary(t, image, begin, end, halo, step, step + 2 * halo, false, own);
    float *z2 = own.floats(step * t.w * by_eight(b.kept)), *grad = own.floats(rows_scratch(b.grad_out, step));
    for (int64_t y = begin; y < end; y += step) {
      const int64_t count = std::min(step, end - y);
      primary.ensure(y + count + halo);
      const Rows z = cheap_product(t, primary, y, count, z2);
      const Rows g = read_rows(b.grad_out, image, y, count, grad, t.m, b.kept);
      b.norm2.add_sums(group, b.norm2.call(count * t.w, b.kept, z, g));
    }
  });
}

/// Gradients of z2 and then of y1 for one unit, in order and only as far as they are wanted.
class CheapGradient {
 public:
  CheapGradient(const ModuleBackward& b, int64_t image, int64_t begin, int64_t end, Scratch& scratch)
      : b_(b),
        image_(image),
        step_(b.step()),
        halo_(b.t.cheap.halo()),
        next_(std::max<int64_t>(0, begin - halo_)),
        bottom_(std::min(b.t.h, end + halo_)),
        // the window of the first product is behind that of the second, each a step late
        primary_(b.t, image, begin, end, 2 * halo_, step_, 2 * step_ + 3 * halo_, true, scratch),
        grad_z2_(next_, step_, step_ + 2 * halo_, b.t.h, b.t.w, by_eight(b.kept), scratch),
        z2_(scratch.floats(step_ * b.t.w * by_eight(b.kept))),
        grad_(scratch.floats(rows_scratch(b.grad_out, step_))),
        through_(scratch.floats(step_ * b.t.w * by_eight(b.kept))) {}

  /// The gradient of y1's rows y to y + count, a step at the most, as the sum of two.
  std::pair<Rows, Rows> grad_y1(int64_t y, int64_t count) {
    const TrainContext& t = b_.t;
    make_grad_z2(y + count + halo_);
    const int64_t pixels = count * t.w, cheap_pixel = by_eight(b_.kept);
    const Rows g = read_rows(b_.grad_out, image_, y, count, grad_, 0, t.m);
    const float* rows[kMostRows];
    grad_z2_.window(y, count, halo_, rows);
    const Rows through = b_.through_rows(image_, y);
    const bool direct = b_.kept == t.m && !t.cheap.expands();
    kernels().depthwise({rows, cheap_pixel, count, t.w, b_.kept, t.cheap.kernel, b_.flipped, padded(b_.kept), nullptr,
                         direct ? through.data : through_, t.w * cheap_pixel, cheap_pixel, false});
    if (!direct) {
      std::fill(through.data, through.data + pixels * through.pixel, 0.f);
      reduce_channels(through_, cheap_pixel, through.data, through.pixel, pixels, b_.kept, t.cheap.multiplier);
    }
    return {g, through};
  }

  /// After grad_y1 of the same rows.
  void add_weight_gradient(int64_t group, int64_t y, int64_t count) const {
    const float* rows[kMostRows];
    const float* grads[kMostRows];
    const int64_t in_pixel = primary_.window(y, count, rows), pixel = by_eight(b_.kept);
    for (int64_t i = 0; i < count; i++) grads[i] = grad_z2_.row(y + i);
    kernels().depthwise_weight_grad(
        {rows, in_pixel, count, b_.t.w, b_.kept, b_.t.cheap.kernel, grads, pixel, b_.w2_of(group)});
  }

  /// What the primary's BatchNorm backward reads of row y, the i-th of the last grad_y1.
  NormBackward norm_call(int64_t y, int64_t i, const std::pair<Rows, Rows>& grad) const {
    const auto row = [&](const Rows& r) { return Rows{r.data + i * b_.t.w * r.pixel, r.pixel}; };
    NormBackward call = b_.norm1.call(b_.t.w, b_.t.m, primary_.z1(y + i), row(grad.first));
    call.grad_too = call.out = row(grad.second).data, call.grad_too_pixel = call.out_pixel = grad.second.pixel;
    return call;
  }

 private:
  void make_grad_z2(int64_t limit) {
    const TrainContext& t = b_.t;
    for (limit = std::min(limit, bottom_); next_ < limit;) {
      const int64_t count = std::min(step_, bottom_ - next_);
      primary_.ensure(next_ + count + halo_);
      const Rows z = cheap_product(t, primary_, next_, count, z2_);
      const Rows g = read_rows(b_.grad_out, image_, next_, count, grad_, t.m, b_.kept);
      b_.norm2.write(b_.norm2.call(count * t.w, b_.kept, z, g), grad_z2_.row(next_), by_eight(b_.kept));
      next_ += count;
    }
  }

  const ModuleBackward& b_;
  int64_t image_, step_, halo_, next_, bottom_;
  PrimaryRows primary_;
  RowRing grad_z2_;
  float *z2_, *grad_, *through_;
};

void primary_norm_sums(const ModuleBackward& b) {
  b.t.for_units(true, [&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    CheapGradient cheap(b, image, begin, end, own);
    for (int64_t y = begin; y < end; y += b.step()) {
      const int64_t count = std::min(b.step(), end - y);
      const auto grad = cheap.grad_y1(y, count);
      for (int64_t i = 0; i < count; i++) b.norm1.add_sums(group, cheap.norm_call(y, i, grad));
      cheap.add_weight_gradient(group, y, count);
    }
  });
}

void primary_gradients(const ModuleBackward& b) {
  const TrainContext& t = b.t;
  const Kernels& k = kernels();
  t.for_units(false, [&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const int64_t pixel = by_eight(t.m), floats = b.step() * t.w * pixel;
    float *z = own.floats(t.z1 ? 0 : floats), *grad_z1 = own.floats(floats);
    float *x_rows = own.floats(rows_scratch(t.x, b.step())),
          *grad_x_rows = own.floats(rows_scratch(b.grad_x, b.step()));
    for (int64_t y = begin; y < end; y += b.step()) {
      const int64_t count = std::min(b.step(), end - y), pixels = count * t.w;
      const Rows x = rows_of(t.x, image, y, count, x_rows, 0, t.c);
      if (t.z1) fetch_rows(t.x, image, y, count);
      const Rows z1 = t.z1 ? t.kept_rows(image, y) : Rows{z, pixel};
      if (!t.z1) t.product(x, count, z1, next_rows(t.x, image, y, count));
      NormBackward call = b.norm1.call(pixels, t.m, z1, b.through_rows(image, y));
      call.affine = {nullptr, nullptr, kNone, nullptr};  // B2 has gone through the activation
      b.norm1.write(call, grad_z1, pixel);
      k.gemm({x.data, 1, x.pixel, t.c, pixels, t.m, grad_z1, pixel, nullptr, b.w1_of(group), padded(t.m), true, false,
              true});
      const Rows to = rows_to_write(b.grad_x, image, y, grad_x_rows);
      k.gemm({grad_z1, pixel, 1, pixels, t.m, t.c, b.transposed, 0, nullptr, to.data, to.pixel, !b.grad_x.direct, false,
              false});
      finish_rows(b.grad_x, image, y, count, to);
    }
  });
}

/// Whether B1 should keep z1 for B2 and B3: where making it twice more costs more than writing and reading it, and the
/// scratch that it takes stays small.
bool worth_keeping_z1(const TrainContext& t) {
  constexpr int64_t kMost = 4 << 20;  // floats
  return 2 * t.product_cost() > 4 * t.m && t.values() * by_eight(t.m) <= kMost;
}

/// A gradient in its parameter's dtype, or an empty tensor where there is none.
Tensor given(const Optional& parameter, const float* grad, int64_t channels, abi::DType x) {
  if (!parameter) return abi::empty({0}, x);
  if (parameter->numel() == channels) return result(grad, {channels}, parameter->dtype());
  double total = 0;
  for (int64_t c = 0; c < channels; c++) total += grad[c];
  const float sum = static_cast<float>(total);
  return result(&sum, {1}, parameter->dtype());
}

}  // namespace

Results<9> ghost_module_train_backward(const Tensor& grad_out, const Tensor& x, const Tensor& w1,
                                       const Optional& gamma1, const Optional& beta1, const Tensor& w2,
                                       const Optional& gamma2, const Optional& beta2, const Optional& act_weight,
                                       const Optional& cheap_act_weight, const Tensor& mean1, const Tensor& var1,
                                       const Tensor& mean2, const Tensor& var2, const Optional& primary,
                                       int64_t out_channels, int64_t act, int64_t cheap_act, double act_slope,
                                       double cheap_act_slope, double eps1, double eps2) {
  if (!all_readable(grad_out, x, w1, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight, mean1, var1, mean2,
                    var2, primary) ||
      !cheap_kernel_known(w2) || x.numel() <= x.size(1))
    return abi::call<Results<9>>("ghost_ops::ghost_module_train_backward_reference", "", grad_out, x, w1, gamma1, beta1,
                                 w2, gamma2, beta2, act_weight, cheap_act_weight, mean1, var1, mean2, var2, primary,
                                 out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2);
  Scratch scratch;
  TrainContext t =
      make_context({"ghost_module_train_backward", x, w1, gamma1, beta1, w2, gamma2, beta2, act_weight,
                    cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2},
                   scratch);
  const Checks check("ghost_module_train_backward");
  const int64_t cheap_channels = t.cheap.channels, kept = out_channels - t.m, groups = t.groups();
  check.shape("grad_out", grad_out, {t.n, out_channels, t.h, t.w});
  check.shape("primary_mean", mean1, {t.m});
  check.shape("primary_var", var1, {t.m});
  check.shape("cheap_mean", mean2, {cheap_channels});
  check.shape("cheap_var", var2, {cheap_channels});
  check.shape("primary", primary, {t.n, t.h, t.w, t.m});
  const auto set = [&](BatchNormState& half, const Tensor& mean, const Tensor& var) {
    half.allocate(scratch);
    std::copy_n(dense(mean, scratch), half.channels, half.mean);
    std::copy_n(dense(var, scratch), half.channels, half.var);
    half.set_affine();
  };
  set(t.primary, mean1, var1);
  set(t.cheap_norm, mean2, var2);
  t.cheap.channels = kept;

  Tensor grad_x = new_map({t.n, t.c, t.h, t.w}, x);
  const int64_t floats = t.values() * by_eight(t.m);
  Tensor through = new_tensor({floats}, abi::DType::float32);
  float* transposed = scratch.floats(padded(t.c) * t.m);
  kernels().pack({dense(w1, scratch), 1, t.c, t.c, t.m, nullptr, nullptr, transposed});
  const int64_t kernel = t.cheap.kernel, taps = kernel * kernel;
  const float* cheap_weight = dense(w2, scratch);
  ModuleBackward b{t,
                   Map(grad_out),
                   Map(grad_x),
                   kept,
                   pack_cheap(cheap_weight, kernel, kept, nullptr, scratch, true),
                   transposed,
                   scratch.zeros(groups * t.c * padded(t.m)),
                   scratch.zeros(groups * taps * sum_floats(kept)),
                   through.data<float>(),
                   NormGradient(t.primary, t.m, groups, scratch),
                   NormGradient(t.cheap_norm, kept, groups, scratch)};

  const auto f = [&](int64_t n) { return scratch.zeros(n); };
  float *gamma1_grad = f(t.m), *beta1_grad = f(t.m), *slope1_grad = f(t.m);
  float *gamma2_grad = f(cheap_channels), *beta2_grad = f(cheap_channels), *slope2_grad = f(cheap_channels);
  if (primary)
    b.t.z1 = const_cast<float*>(dense(*primary, scratch)), b.t.z1_pixel = t.m;
  else if (t.bands() == 1 && worth_keeping_z1(t))
    b.t.z1_out = scratch.floats(floats);
  cheap_norm_sums(b);
  if (b.t.z1_out) b.t.z1 = std::exchange(b.t.z1_out, nullptr), b.t.z1_pixel = by_eight(t.m);
  b.norm2.finish(kept, t.values(), gamma2_grad, beta2_grad, slope2_grad);
  primary_norm_sums(b);
  b.norm1.finish(t.m, t.values(), gamma1_grad, beta1_grad, slope1_grad);
  primary_gradients(b);

  const std::vector<double> w1_sum = combine(b.grad_w1, groups, t.c * padded(t.m), t.c * padded(t.m));
  const std::vector<double> w2_sum = combine(b.grad_w2, groups, taps * sum_floats(kept), taps * sum_floats(kept));
  float *w1_grad = f(t.m * t.c), *w2_grad = f(cheap_channels * taps);
  for (int64_t j = 0; j < t.m; j++)
    for (int64_t c = 0; c < t.c; c++) w1_grad[j * t.c + c] = static_cast<float>(w1_sum[c * padded(t.m) + j]);
  for (int64_t j = 0; j < kept; j++)
    for (int64_t i = 0; i < taps; i++) {
      const double* sum = &w2_sum[i * sum_floats(kept) + j];
      w2_grad[j * taps + i] = static_cast<float>(sum[0] - sum[padded(kept)]);
    }
  const abi::DType dtype = x.dtype();
  return {std::move(grad_x),
          result(w1_grad, {t.m, t.c, 1, 1}, w1.dtype()),
          given(gamma1, gamma1_grad, t.m, dtype),
          given(beta1, beta1_grad, t.m, dtype),
          result(w2_grad, {cheap_channels, 1, kernel, kernel}, w2.dtype()),
          given(gamma2, gamma2_grad, cheap_channels, dtype),
          given(beta2, beta2_grad, cheap_channels, dtype),
          given(act_weight, slope1_grad, t.m, dtype),
          given(cheap_act_weight, slope2_grad, cheap_channels, dtype)};
}

GHOST_OPERATOR(ghost_module_train_backward);

}  // namespace ghost
