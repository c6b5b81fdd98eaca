// branched_module_train_backward: B1 the gradient of the cheap sum and the sums of its BatchNorms, B2 the gradient of
// y1 through its branches and the sums of the primary BatchNorms, B3 the gradients of the primary weights and of x.
#include "branched_module.h"
#include "operator.h"

namespace ghost {
namespace {

/// A BatchNorm of the backward: the gradient of its input is k (g - c0 - (z - mean) c1).
struct NormCoefficients {
  float *k, *c0, *c1, *grad_gamma, *grad_beta;
  NormCoefficients(int64_t m, Scratch& scratch) {
    for (float** p : {&k, &c0, &c1, &grad_gamma, &grad_beta}) *p = scratch.zeros(padded(m));
  }
  /// From the sums of g and of g (z - mean) over so many values a channel.
  void set(const BatchNormState& norm, int64_t i, double g, double gz, double values) {
    const double inverse = norm.inverse_std(i);
    grad_gamma[i] = static_cast<float>(gz * inverse), grad_beta[i] = static_cast<float>(g);
    k[i] = static_cast<float>(inverse * (norm.gamma ? norm.gamma[i] : 1.0));
    c0[i] = static_cast<float>(g / values), c1[i] = static_cast<float>(gz * inverse * inverse / values);
  }
};

struct BranchedBackward {
  const BranchedContext& t;
  Map grad_out, grad_x;
  MergedCheap merged;
  float *z, *y1, *grad_y2, *grad_y1;  // maps: grad_y2 of the cheap sum, grad_y1 first of y1, then of the primary sum
  const float* mean;                  // of y1
  std::vector<NormCoefficients> primary, cheap;
  // What the branches that read a pixel of y1 each give: A (g - c0) - B (y1 - mean)
  float *pointwise_a, *pointwise_c0, *pointwise_b;
  float* cheap_sums;  // per group: g, g (y1 - mean)
  float* tap_sums;    // per group: [taps] of g times the y1 under the tap
  float* grad_w2;     // per group and depthwise branch: [taps] sums
  std::vector<NormGradient> primary_sums;
  float* grad_w1;  // per group: [c][padded(products)]
  const float* transposed;
  const float* zeros;  // a row
  UpsampledGate grad_gate;

  float* sums_of(int64_t group, int64_t which) const { return cheap_sums + (group * 2 + which) * sum_floats(t.m); }
  float* taps_of(int64_t group) const { return tap_sums + group * t.taps() * sum_floats(t.m); }
  float* w2_of(int64_t group, int64_t branch) const {
    return grad_w2 + (group * t.depthwise_branches() + branch) * t.taps() * sum_floats(t.m);
  }
  float* w1_of(int64_t group) const { return grad_w1 + group * t.c * padded(t.products()); }
  bool pointwise() const { return t.scales || t.identity; }
  Rows y1_row(int64_t image, int64_t y) const { return t.at(y1, image * t.h + y); }
  Rows grad_y2_row(int64_t image, int64_t y) const { return t.at(grad_y2, image * t.h + y); }
  Rows grad_y1_row(int64_t image, int64_t y) const { return t.at(grad_y1, image * t.h + y); }

  /// Adds the gate's gradient of some rows: of the output's gradient times what the gate multiplied.
  void add_gate_gradient(const Rows& grad, const Rows& values, int64_t image, int64_t y, int64_t count, int64_t first,
                         int64_t channels) const {
    for (int64_t i = 0; i < count; i++)
      kernels().sum_downsampled(grad_gate.beside({grad.data + i * t.w * grad.pixel, grad.pixel}, channels),
                                values.data + i * t.w * values.pixel, values.pixel, grad_gate.row(image, y + i) + first,
                                grad_gate.pixel);
  }
  /// The output's gradient of some rows and channels, before the gate.
  Rows read_grad(int64_t image, int64_t y, int64_t count, int64_t first, int64_t channels, const Rows* values,
                 Scratch& own) const {
    const Rows read = read_rows(grad_out, image, y, count, own.floats(rows_scratch(grad_out, count)), first, channels);
    if (!t.gate) return read;
    if (values) add_gate_gradient(read, *values, image, y, count, first, channels);
    const Rows gated{own.floats(count * t.w * padded(channels)), padded(channels)};
    t.gate.multiply(read, image, y, count, first, channels, gated);
    return gated;
  }
};

NormBackward over(int64_t pixels, int64_t channels, const Rows& z, const Rows& grad, const Rows& out) {
  NormBackward b{};
  b.pixels = pixels, b.channels = channels;
  b.z = z.data, b.z_pixel = z.pixel, b.grad = grad.data, b.grad_pixel = grad.pixel;
  b.out = out.data, b.out_pixel = out.pixel;
  return b;
}

void cheap_sum_gradient(const BranchedBackward& b) {
  const BranchedContext& t = b.t;
  t.for_steps([&](int64_t group, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    const int64_t pixels = count * t.w;
    const Rows y1 = b.y1_row(image, y), to = b.grad_y2_row(image, y);
    const auto rows = t.window(b.y1, image, y, count, b.zeros);
    const Affine act{nullptr, nullptr, t.cheap_act, t.cheap_slope};
    Rows sum{nullptr, t.pixel()};
    if (t.cheap_act != kNone || t.gate) {
      sum.data = own.floats(pixels * t.pixel());
      t.convolve(rows, b.merged.weight, b.merged.bias, t.kept, count, sum);
    }
    Rows y2 = sum;
    if (t.gate && t.cheap_act != kNone) {
      y2.data = own.floats(pixels * t.pixel());
      kernels().affine(sum.data, sum.pixel, act, y2.data, y2.pixel, pixels, t.kept);
    }
    const Rows grad = b.read_grad(image, y, count, t.first, t.kept, &y2, own);
    NormBackward through = over(pixels, t.kept, sum.data ? sum : grad, grad, to);
    if (t.cheap_act != kNone) through.affine = act;
    kernels().norm_backward(through);
    for (int64_t i = 0; t.kept < t.m && i < pixels; i++)
      std::fill(to.data + i * to.pixel + t.kept, to.data + i * to.pixel + t.m, 0.f);
    NormBackward sums = over(pixels, t.m, y1, to, {nullptr, 0});
    sums.mean = b.mean, sums.sum_g = b.sums_of(group, 0), sums.sum_gz = b.sums_of(group, 1);
    kernels().norm_backward_sums(sums);
    std::vector<const float*> grads(count);
    for (int64_t i = 0; i < count; i++) grads[i] = to.data + i * t.w * to.pixel;
    kernels().depthwise_weight_grad(
        {rows.data(), t.pixel(), count, t.w, t.m, t.kernel, grads.data(), to.pixel, b.taps_of(group)});
  });
}

/// The coefficients of the cheap BatchNorms; `grad_scale` is the gradient of the weight that scales y1.
void finish_cheap(BranchedBackward& b, float* grad_scale) {
  const BranchedContext& t = b.t;
  const int64_t groups = t.groups(), pad = sum_floats(t.m), half = padded(t.m);
  const std::vector<double> sums = combine(b.cheap_sums, groups, 2 * pad, 2 * pad);
  const std::vector<double> taps = combine(b.tap_sums, groups, t.taps() * pad, t.taps() * pad);
  const double values = static_cast<double>(t.values());
  for (int64_t i = 0; i < t.m; i++) {
    const double g = sums[i] - sums[half + i], gy = sums[pad + i] - sums[pad + half + i];
    size_t next = t.weights.size();
    for (size_t branch = 0; branch < next; branch++) {
      double gz = -g * t.cheap[branch].mean[i];
      for (int64_t tap = 0; tap < t.taps(); tap++)
        gz += t.weights[branch][tap * half + i] * (taps[tap * pad + i] - taps[tap * pad + half + i]);
      b.cheap[branch].set(t.cheap[branch], i, g, gz, values);
    }
    double a = 0, c1 = 0;
    const auto pointwise = [&](double w) {
      const BatchNormState& norm = t.cheap[next];
      b.cheap[next].set(norm, i, g, gy * w, values);
      const double inverse = norm.inverse_std(i), k = inverse * (norm.gamma ? norm.gamma[i] : 1.0);
      a += w * k, c1 += w * k * gy * w * w * inverse * inverse / values;
      next++;
      return k * gy * norm.eps * inverse * inverse;  // what of the sum of gz (y1 - mean) the BatchNorm leaves
    };
    if (t.scales) grad_scale[i] = static_cast<float>(pointwise(t.scale[i]));
    if (t.identity) pointwise(1.0);
    b.pointwise_a[i] = static_cast<float>(a), b.pointwise_b[i] = static_cast<float>(c1);
    b.pointwise_c0[i] = static_cast<float>(g / values);
  }
}

/// The gradient of y1 through the branches of the cheap sum, for some rows of an image, and their weights' gradients.
void through_branches(const BranchedBackward& b, int64_t group, int64_t image, int64_t y, int64_t count) {
  const BranchedContext& t = b.t;
  Scratch own;
  const int64_t begin = std::max<int64_t>(0, y - t.halo()), end = std::min(t.h, y + count + t.halo());
  const int64_t pixels = count * t.w, wide = (end - begin) * t.w, pixel = t.pixel();
  const auto rows = t.window(b.y1, image, y, count, b.zeros);
  const auto wide_rows = t.window(b.y1, image, begin, end - begin, b.zeros);
  const Rows z{own.floats(wide * pixel), pixel}, more{own.floats(pixels * pixel), pixel};
  const Rows y1 = b.y1_row(image, y), grad = b.grad_y2_row(image, y), to = b.grad_y1_row(image, y);
  std::vector<const float*> grads(count), grad_rows(count + 2 * t.halo());
  for (int64_t i = 0; i < count; i++) grads[i] = z.data + (y - begin + i) * t.w * pixel;
  for (int64_t i = 0; i < count + 2 * t.halo(); i++) {
    const int64_t at = y - t.halo() + i;
    grad_rows[i] = at < begin || at >= end ? b.zeros : z.data + (at - begin) * t.w * pixel;
  }
  for (size_t branch = 0; branch < t.weights.size(); branch++) {
    t.convolve(wide_rows, t.weights[branch], nullptr, t.m, end - begin, z);
    NormBackward call = over(wide, t.m, z, b.grad_y2_row(image, begin), z);
    const NormCoefficients& norm = b.cheap[branch];
    call.mean = t.cheap[branch].mean, call.k = norm.k, call.c0 = norm.c0, call.c1 = norm.c1;
    kernels().norm_backward(call);
    kernels().depthwise_weight_grad(
        {rows.data(), pixel, count, t.w, t.m, t.kernel, grads.data(), pixel, b.w2_of(group, branch)});
    t.convolve(grad_rows, t.flipped[branch], nullptr, t.m, count, branch ? more : to);
    if (branch) kernels().add(to.data, pixel, more.data, pixel, to.data, pixel, pixels, t.m);
  }
  if (!b.pointwise()) return;
  NormBackward first = over(pixels, t.m, y1, grad, more);
  first.k = b.pointwise_a, first.c0 = b.pointwise_c0;
  kernels().norm_backward(first);
  NormBackward second = over(pixels, t.m, y1, to, to);
  second.grad_too = more.data, second.grad_too_pixel = pixel;
  second.mean = b.mean, second.c1 = b.pointwise_b;
  kernels().norm_backward(second);
}

void primary_sum_gradient(const BranchedBackward& b) {
  const BranchedContext& t = b.t;
  t.for_steps([&](int64_t group, int64_t image, int64_t y, int64_t count) {
    through_branches(b, group, image, y, count);
    Scratch own;
    const int64_t pixels = count * t.w, row = image * t.h + y;
    const Rows to = b.grad_y1_row(image, y), y1 = b.y1_row(image, y), z = t.at(b.z, row, t.products());
    NormBackward call = over(pixels, t.m, z, to, to);
    if (t.first) {
      const Rows direct = b.read_grad(image, y, count, 0, t.m, &y1, own);
      call.grad_too = direct.data, call.grad_too_pixel = direct.pixel;
    }
    if (t.primary.size() == 1) {
      call.affine = {t.primary[0].scale, t.primary[0].shift, t.act, t.slope};
      call.mean = t.primary[0].mean;
      b.primary_sums[0].add_sums(group, call);
      return;
    }
    Rows sum = y1;  // of a ReLU the result has the sign of what it is of
    if (t.act != kNone && t.act != kRelu) {
      sum.data = own.floats(pixels * sum.pixel);
      t.sum_branches(b.z, row, count, sum);
    }
    call.z = sum.data, call.z_pixel = sum.pixel;
    if (t.act != kNone) call.affine = {nullptr, nullptr, t.act, t.slope};
    if (t.act != kNone || t.first) kernels().norm_backward(call);
    for (size_t branch = 0; branch < t.primary.size(); branch++) {
      const Rows own_z{z.data + static_cast<int64_t>(branch) * t.pixel(), z.pixel};
      NormBackward sums = over(pixels, t.m, own_z, to, {nullptr, 0});
      sums.mean = t.primary[branch].mean;
      b.primary_sums[branch].add_sums(group, sums);
    }
  });
}

void primary_gradients(const BranchedBackward& b) {
  const BranchedContext& t = b.t;
  const int64_t products = t.products();
  const bool flat = BranchedContext::is_flat(b.grad_x);
  t.for_rows(t.product_step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const int64_t pixels = count * t.w;
    const Rows x = t.read_x(row, count, own), z = t.at(b.z, row, products);
    const Rows grad{t.pixel() == t.m ? own.floats(pixels * products) : own.zeros(pixels * products), products};
    for (size_t branch = 0; branch < t.primary.size(); branch++) {
      const int64_t at = static_cast<int64_t>(branch) * t.pixel();
      NormBackward call = over(pixels, t.m, {z.data + at, products}, t.at(b.grad_y1, row), {grad.data + at, products});
      call.mean = t.primary[branch].mean;
      const NormCoefficients& norm = b.primary[branch];
      call.k = norm.k, call.c0 = norm.c0, call.c1 = norm.c1;
      kernels().norm_backward(call);
    }
    kernels().gemm({x.data, 1, x.pixel, t.c, pixels, products, grad.data, products, nullptr, b.w1_of(group),
                    padded(products), true, false, true});
    const int64_t pixel = flat ? b.grad_x.pixel : padded(t.c);
    const Rows to{flat ? reinterpret_cast<float*>(b.grad_x.data) + row * t.w * pixel : own.floats(pixels * pixel),
                  pixel};
    kernels().gemm({grad.data, products, 1, pixels, products, t.c, b.transposed, 0, nullptr, to.data, to.pixel, !flat,
                    false, false});
    if (flat) return;
    t.for_images(row, count, [&](int64_t image, int64_t y, int64_t part, int64_t done) {
      const Rows own_rows{to.data + done * t.w * pixel, pixel};
      kernels().scatter(own_rows.data, t.w * pixel, pixel, part, t.w, t.c,
                        {b.grad_x.at(image, y), b.grad_x.bf16, b.grad_x.channel, b.grad_x.row, b.grad_x.pixel});
    });
  });
}

void finish_primary(BranchedBackward& b) {
  const BranchedContext& t = b.t;
  const int64_t pad = sum_floats(t.m), half = padded(t.m);
  for (size_t branch = 0; branch < t.primary.size(); branch++) {
    const std::vector<double> total = combine(b.primary_sums[branch].sums, t.groups(), 3 * pad, 3 * pad);
    for (int64_t i = 0; i < t.m; i++)
      b.primary[branch].set(t.primary[branch], i, total[i] - total[half + i], total[pad + i] - total[pad + half + i],
                            static_cast<double>(t.values()));
  }
}

/// z where it was not kept, y1, and its mean.
void make_maps(BranchedContext& t, bool make_products, float* z, float* y1, float* mean, Scratch& scratch) {
  Moments moments(t.groups(), t.m, scratch);
  const bool needed = t.scales || t.identity;
  t.for_rows(t.product_step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    if (make_products) t.product(t.read_x(row, count, own), row, count, z);
    t.activate(z, row, count, y1);
    if (needed) moments.add(group, t.at(y1, row).data, t.pixel(), count * t.w);
  });
  if (needed) moments.finish(mean, scratch.zeros(t.m));
}

/// A gradient of the BatchNorms of some branches, one after the other.
Tensor joined(const Optional& parameter, const std::vector<NormCoefficients>& norms, int64_t m,
              float* NormCoefficients::* which, abi::DType x, Scratch& scratch) {
  const int64_t count = static_cast<int64_t>(norms.size()) * m;
  float* all = scratch.floats(count);
  for (size_t b = 0; b < norms.size(); b++) std::copy_n(norms[b].*which, m, all + static_cast<int64_t>(b) * m);
  return given(parameter, all, count, x);
}

struct GateGradient {
  Tensor tensor;
  UpsampledGate sums;
};

/// Zeros for the sums of the gate's gradient: in the tensor that is returned, or in scratch where its rows are not
/// dense in float32.
GateGradient make_gate_gradient(const BranchedContext& t, const Tensor& gate, Scratch& scratch) {
  const int64_t channels = gate.size(1);
  GateGradient made{new_map({t.n, channels, t.gate.h, t.gate.w}, gate), t.gate};
  const Map map(made.tensor);
  const int64_t pixels = map.n * map.h * map.w;
  const bool flat = BranchedContext::is_flat(map);
  made.sums.pixel = flat ? map.pixel : padded(channels);
  made.sums.data = flat ? reinterpret_cast<float*>(map.data) : scratch.floats(pixels * made.sums.pixel);
  std::fill_n(made.sums.data, pixels * made.sums.pixel, 0.f);
  return made;
}

Tensor finish_gate_gradient(GateGradient made) {
  const Map map(made.tensor);
  for (int64_t i = 0; !BranchedContext::is_flat(map) && i < map.n; i++)
    kernels().scatter(made.sums.data + i * map.h * map.w * made.sums.pixel, map.w * made.sums.pixel, made.sums.pixel,
                      map.h, map.w, map.c, {map.at(i, 0), map.bf16, map.channel, map.row, map.pixel});
  return std::move(made.tensor);
}

}  // namespace

Results<9> branched_module_train_backward(const Tensor& grad_out, const Tensor& x, const Optional& gate,
                                          const Tensor& w1, const Optional& gamma1, const Optional& beta1,
                                          const Tensor& w2, const Optional& scale_weight, const Optional& gamma2,
                                          const Optional& beta2, const Tensor& mean1, const Tensor& var1,
                                          const Tensor& mean2, const Tensor& var2, const Optional& products,
                                          int64_t branches, bool identity, int64_t out_channels, int64_t act,
                                          int64_t cheap_act, double act_slope, double cheap_act_slope, double eps1,
                                          double eps2) {
  const BranchedArguments a{"branched_module_train_backward",
                            x,
                            gate,
                            w1,
                            gamma1,
                            beta1,
                            w2,
                            scale_weight,
                            gamma2,
                            beta2,
                            branches,
                            identity,
                            out_channels,
                            act,
                            cheap_act,
                            act_slope,
                            cheap_act_slope,
                            eps1,
                            eps2};
  if (!branched_known(a) || !all_readable(grad_out, mean1, var1, mean2, var2, products))
    return abi::call<Results<9>>("ghost_ops::branched_module_train_backward_reference", "", grad_out, x, gate, w1,
                                 gamma1, beta1, w2, scale_weight, gamma2, beta2, mean1, var1, mean2, var2, products,
                                 branches, identity, out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1,
                                 eps2);
  Scratch scratch;
  BranchedContext t = make_context(a, scratch);
  const Checks check(a.op);
  check.shape("grad_out", grad_out, {t.n, out_channels, t.h, t.w});
  check.shape("products", products, {t.n, t.h, t.w, branches, t.pixel()});
  const auto set = [&](std::vector<BatchNormState>& norms, const char* mean_name, const Tensor& mean,
                       const char* var_name, const Tensor& var) {
    const int64_t count = static_cast<int64_t>(norms.size()) * t.m;
    check.shape(mean_name, mean, {count});
    check.shape(var_name, var, {count});
    const float *means = dense(mean, scratch), *variances = dense(var, scratch);
    for (size_t b = 0; b < norms.size(); b++) {
      std::copy_n(means + static_cast<int64_t>(b) * t.m, t.m, norms[b].mean);
      std::copy_n(variances + static_cast<int64_t>(b) * t.m, t.m, norms[b].var);
    }
  };
  set(t.primary, "primary_mean", mean1, "primary_var", var1);
  set(t.cheap, "cheap_mean", mean2, "cheap_var", var2);
  t.set_affine(scratch);

  const auto new_floats = [](int64_t floats) { return new_tensor({floats}, abi::DType::float32); };
  const int64_t groups = t.groups(), pixel = t.pixel(), pad = sum_floats(t.m);
  Tensor grad_x = new_map({t.n, t.c, t.h, t.w}, x);
  Tensor y1 = new_floats(t.values() * pixel), grad_y2 = new_floats(t.values() * pixel);
  std::optional<Tensor> made;
  if (!products) made = new_floats(t.values() * t.products());
  float* z = made ? made->data<float>() : const_cast<float*>(dense(*products, scratch));
  float* transposed = scratch.floats(panel_floats(t.c, t.products()));
  kernels().pack({t.stacked, 1, t.c, t.c, t.products(), nullptr, nullptr, transposed});
  float* mean = scratch.zeros(padded(t.m));
  make_maps(t, !products, z, y1.data<float>(), mean, scratch);

  const auto zeros = [&](int64_t count) { return scratch.zeros(count); };
  std::vector<NormCoefficients> of_primary, of_cheap;
  std::vector<NormGradient> primary_sums;
  for (const BatchNormState& norm : t.primary) {
    of_primary.emplace_back(t.m, scratch);
    primary_sums.emplace_back(norm, t.m, groups, scratch);
  }
  for (size_t i = 0; i < t.cheap.size(); i++) of_cheap.emplace_back(t.m, scratch);
  Tensor grad_y1 = new_floats(t.values() * pixel);
  BranchedBackward b{t,
                     Map(grad_out),
                     Map(grad_x),
                     MergedCheap(t, scratch),
                     z,
                     y1.data<float>(),
                     grad_y2.data<float>(),
                     grad_y1.data<float>(),
                     mean,
                     std::move(of_primary),
                     std::move(of_cheap),
                     zeros(padded(t.m)),
                     zeros(padded(t.m)),
                     zeros(padded(t.m)),
                     zeros(groups * 2 * pad),
                     zeros(groups * t.taps() * pad),
                     zeros(groups * t.depthwise_branches() * t.taps() * pad),
                     std::move(primary_sums),
                     zeros(groups * t.c * padded(t.products())),
                     transposed,
                     zeros(t.w * pixel),
                     {}};
  std::optional<GateGradient> gate_gradient;
  if (gate) gate_gradient.emplace(make_gate_gradient(t, *gate, scratch)), b.grad_gate = gate_gradient->sums;
  float* grad_scale = zeros(t.m);
  cheap_sum_gradient(b);
  finish_cheap(b, grad_scale);
  primary_sum_gradient(b);
  finish_primary(b);
  primary_gradients(b);

  const float* sums_w1 = transposed_sums(b.grad_w1, groups, t.c, t.products(), scratch);
  float* of_w1 = scratch.floats(branches * t.m * t.c);
  for (int64_t i = 0; i < branches; i++) std::copy_n(sums_w1 + i * pixel * t.c, t.m * t.c, of_w1 + i * t.m * t.c);
  const int64_t w2_floats = t.depthwise_branches() * t.taps() * pad;
  const std::vector<double> sums_w2 = combine(b.grad_w2, groups, w2_floats, w2_floats);
  float* of_w2 = scratch.floats(w2.numel());
  for (int64_t branch = 0; branch < t.depthwise_branches(); branch++)
    for (int64_t i = 0; i < t.m; i++)
      for (int64_t tap = 0; tap < t.taps(); tap++) {
        const double* sum = &sums_w2[(branch * t.taps() + tap) * pad + i];
        of_w2[(branch * t.m + i) * t.taps() + tap] = static_cast<float>(sum[0] - sum[padded(t.m)]);
      }
  const abi::DType dtype = x.dtype();
  return {std::move(grad_x),
          gate_gradient ? finish_gate_gradient(std::move(*gate_gradient)) : abi::empty({0}, dtype),
          result(of_w1, {branches * t.m, t.c, 1, 1}, w1.dtype()),
          joined(gamma1, b.primary, t.m, &NormCoefficients::grad_gamma, dtype, scratch),
          joined(beta1, b.primary, t.m, &NormCoefficients::grad_beta, dtype, scratch),
          result(of_w2, {t.depthwise_branches() * t.m, 1, t.kernel, t.kernel}, w2.dtype()),
          scale_weight ? result(grad_scale, {t.m, 1, 1, 1}, scale_weight->dtype()) : abi::empty({0}, dtype),
          joined(gamma2, b.cheap, t.m, &NormCoefficients::grad_gamma, dtype, scratch),
          joined(beta2, b.cheap, t.m, &NormCoefficients::grad_beta, dtype, scratch)};
}

GHOST_OPERATOR(branched_module_train_backward);

}  // namespace ghost
