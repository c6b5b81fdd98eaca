// ghost_module_train_backward: B1 the sums of the cheap operation's BatchNorm; B2 its weight's gradient and the sums of
// the primary's BatchNorm; B3 the gradients of the primary weight and of x. Everything else is computed again from x.
// cheap_concat_train_backward: the same passes over a z1 that is given, of which B3 writes the gradient.
#include "operator.h"
#include "train.h"

namespace ghost {
namespace {

constexpr int64_t kMostRows = 56 + 6;  // of a step and its halo

struct ModuleBackward {
  TrainContext t;
  Map grad_out, grad_x;
  int64_t kept;              // cheap channels that out has: the others have no gradient
  const float* flipped;      // the cheap weight for the gradient of its input
  const float* transposed;   // packed primary weight for the gradient of x, or null
  float *grad_w1, *grad_w2;  // per group: [c][padded(m)], [taps] sums of kept channels
  float* through;            // gradient of y1 through the cheap operation: B2 leaves it for B3
  NormGradient norm1, norm2;
  UpsampledGate grad_gate;  // sums of the output's gradient times the output before the gate, where there is a gate

  int64_t taps() const { return t.cheap.kernel * t.cheap.kernel; }
  int64_t step() const { return step_rows(t.w, t.h); }
  /// Rows of `through`, from row y on.
  Rows through_rows(int64_t image, int64_t y) const {
    return {through + (image * t.h + y) * t.w * by_eight(t.m), by_eight(t.m)};
  }
  /// What B3's BatchNorm backward reads of pixels from row y on: B2 has gone through the activation.
  NormBackward through_call(int64_t pixels, const Rows& z1, int64_t image, int64_t y) const {
    NormBackward call = norm1.call(pixels, t.m, z1, through_rows(image, y));
    call.affine = {nullptr, nullptr, kNone, nullptr};
    return call;
  }
  /// Scratch that `gated` needs for rows of so many channels.
  int64_t gated_floats(int64_t channels) const { return t.gate ? step() * t.w * padded(channels) : 0; }
  /// The gradient before the gate of rows y to y + count, of `channels` channels from the first given.
  Rows gated(const Rows& grad, int64_t image, int64_t y, int64_t count, int64_t first, int64_t channels,
             float* scratch) const {
    if (!t.gate) return grad;
    const Rows to{scratch, padded(channels)};
    t.gate.multiply(grad, image, y, count, first, channels, to);
    return to;
  }
  /// Adds row y's part of the gate's gradient: of the output's gradient and what the gate multiplied.
  void add_gate_gradient(const Rows& grad, const Rows& values, int64_t image, int64_t y, int64_t first,
                         int64_t channels) const {
    kernels().sum_downsampled(grad_gate.beside(grad, channels), values.data, values.pixel,
                              grad_gate.row(image, y) + first, grad_gate.pixel);
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

/// Row i of some rows of width pixels.
Rows row_of(const Rows& rows, int64_t i, int64_t width) { return {rows.data + i * width * rows.pixel, rows.pixel}; }

void cheap_norm_sums(const ModuleBackward& b) {
  const TrainContext& t = b.t;
  const int64_t step = b.step(), halo = t.cheap.halo();
  t.for_units(false, [&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    PrimaryRows primary(t, image, begin, end, halo, step, step + 2 * halo, false, own);
    float *z2 = own.floats(step * t.w * by_eight(b.kept)), *grad = own.floats(rows_scratch(b.grad_out, step));
    float *gated = own.floats(b.gated_floats(b.kept)), *y2 = own.floats(b.gated_floats(b.kept));
    for (int64_t y = begin; y < end; y += step) {
      const int64_t count = std::min(step, end - y);
      primary.ensure(y + count + halo);
      const Rows z = cheap_product(t, primary, y, count, z2);
      if (t.gate) {
        const Rows g = read_rows(b.grad_out, image, y, count, grad, 0, t.m);
        for (int64_t i = 0; i < count; i++)
          b.add_gate_gradient(row_of(g, i, t.w), {primary.y1(y + i), by_eight(t.m)}, image, y + i, 0, t.m);
      }
      const Rows g = read_rows(b.grad_out, image, y, count, grad, t.m, b.kept);
      if (t.gate) {
        const Rows values{y2, padded(b.kept)};
        kernels().affine(z.data, z.pixel, t.cheap_norm.affine(), y2, values.pixel, count * t.w, b.kept);
        for (int64_t i = 0; i < count; i++)
          b.add_gate_gradient(row_of(g, i, t.w), row_of(values, i, t.w), image, y + i, t.m, b.kept);
      }
      const Rows before = b.gated(g, image, y, count, t.m, b.kept, gated);
      b.norm2.add_sums(group, b.norm2.call(count * t.w, b.kept, z, before));
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
        through_(scratch.floats(step_ * b.t.w * by_eight(b.kept))),
        gated_(scratch.floats(b.gated_floats(std::max(b.t.m, b.kept)))) {}

  /// The gradient of y1's rows y to y + count, a step at the most, as the sum of two.
  std::pair<Rows, Rows> grad_y1(int64_t y, int64_t count) {
    const TrainContext& t = b_.t;
    make_grad_z2(y + count + halo_);
    const int64_t pixels = count * t.w, cheap_pixel = by_eight(b_.kept);
    const Rows read = read_rows(b_.grad_out, image_, y, count, grad_, 0, t.m);
    const Rows g = b_.gated(read, image_, y, count, 0, t.m, gated_);
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
    NormBackward call = b_.norm1.call(b_.t.w, b_.t.m, primary_.z1(y + i), row_of(grad.first, i, b_.t.w));
    call.grad_too = call.out = row_of(grad.second, i, b_.t.w).data,
    call.grad_too_pixel = call.out_pixel = grad.second.pixel;
    return call;
  }

 private:
  void make_grad_z2(int64_t limit) {
    const TrainContext& t = b_.t;
    for (limit = std::min(limit, bottom_); next_ < limit;) {
      const int64_t count = std::min(step_, bottom_ - next_);
      primary_.ensure(next_ + count + halo_);
      const Rows z = cheap_product(t, primary_, next_, count, z2_);
      const Rows read = read_rows(b_.grad_out, image_, next_, count, grad_, t.m, b_.kept);
      const Rows g = b_.gated(read, image_, next_, count, t.m, b_.kept, gated_);
      b_.norm2.write(b_.norm2.call(count * t.w, b_.kept, z, g), grad_z2_.row(next_), by_eight(b_.kept));
      next_ += count;
    }
  }

  const ModuleBackward& b_;
  int64_t image_, step_, halo_, next_, bottom_;
  PrimaryRows primary_;
  RowRing grad_z2_;
  float *z2_, *grad_, *through_, *gated_;
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

/// B3 where x is z1.
void given_z1_gradient(const ModuleBackward& b) {
  const TrainContext& t = b.t;
  t.for_units(false, [&](int64_t, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    float* z = own.floats(t.z1 ? 0 : b.step() * t.w * by_eight(t.m));
    float* grad_rows = own.floats(rows_scratch(b.grad_x, b.step()));
    for (int64_t y = begin; y < end; y += b.step()) {
      const int64_t count = std::min(b.step(), end - y);
      const Rows z1 = t.z1_rows(image, y, count, nullptr, z), to = rows_to_write(b.grad_x, image, y, grad_rows);
      b.norm1.write(b.through_call(count * t.w, z1, image, y), to.data, to.pixel);
      finish_rows(b.grad_x, image, y, count, to);
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
      b.norm1.write(b.through_call(pixels, z1, image, y), grad_z1, pixel);
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
  return t.has_product() && 2 * t.product_cost() > 4 * t.m && t.values() * by_eight(t.m) <= kMost;
}

/// Zeros for the sums of the gate's gradient: in the tensor that is returned, or in scratch where its rows are not
/// dense in float32.
Tensor make_gate_gradient(ModuleBackward& b, const Tensor& gate, Scratch& scratch) {
  const int64_t channels = gate.size(1);
  Tensor grad = new_map({b.t.n, channels, b.t.gate.h, b.t.gate.w}, gate);
  const Map map(grad);
  b.grad_gate = b.t.gate;
  const int64_t pixels = map.n * map.h * map.w;
  b.grad_gate.pixel = map.direct ? map.pixel : padded(channels);
  if (map.direct) {
    b.grad_gate.data = reinterpret_cast<float*>(map.data);
    std::fill_n(b.grad_gate.data, pixels * map.pixel, 0.f);
  } else {
    b.grad_gate.data = scratch.zeros(pixels * b.grad_gate.pixel);
  }
  return grad;
}

Tensor finish_gate_gradient(const ModuleBackward& b, Tensor grad) {
  const Map map(grad);
  for (int64_t i = 0; i < map.n; i++)
    finish_rows(map, i, 0, map.h, {b.grad_gate.data + i * map.h * map.w * b.grad_gate.pixel, b.grad_gate.pixel});
  return grad;
}

/// What a backward reads beside the arguments of the forward; `gate` and `primary` are null where there is none.
struct Saved {
  const Tensor &mean1, &var1, &mean2, &var2;
  const Tensor *gate, *primary;
};

/// Gradients of x, the gate, primary weight, gamma, beta, cheap weight, gamma, beta, and the weights of the PReLUs: an
/// empty tensor for what there is not.
Results<10> backward(const TrainArguments& a, const Tensor& grad_out, const Saved& s) {
  Scratch scratch;
  TrainContext t = make_context(a, scratch);
  if (s.gate) set_gate(t, a.op, *s.gate, a.out_channels, scratch);
  const Checks check(a.op);
  const int64_t cheap_channels = t.cheap.channels, kept = a.out_channels - t.m, groups = t.groups();
  check.shape("grad_out", grad_out, {t.n, a.out_channels, t.h, t.w});
  check.shape("primary_mean", s.mean1, {t.m});
  check.shape("primary_var", s.var1, {t.m});
  check.shape("cheap_mean", s.mean2, {cheap_channels});
  check.shape("cheap_var", s.var2, {cheap_channels});
  if (s.primary) check.shape("primary", *s.primary, {t.n, t.h, t.w, t.m});
  const auto set = [&](BatchNormState& half, const Tensor& mean, const Tensor& var) {
    half.allocate(scratch);
    std::copy_n(dense(mean, scratch), half.channels, half.mean);
    std::copy_n(dense(var, scratch), half.channels, half.var);
    half.set_affine();
  };
  set(t.primary, s.mean1, s.var1);
  set(t.cheap_norm, s.mean2, s.var2);
  t.cheap.channels = kept;

  Tensor grad_x = new_map({t.n, t.c, t.h, t.w}, a.x);
  const int64_t floats = t.values() * by_eight(t.m);
  // B3 overwrites what B2 has left where both are the gradient of the same pixels.
  const bool in_place = !a.primary_weight && Map(grad_x).direct && by_eight(t.m) == t.m;
  Tensor through = in_place ? grad_x.share() : new_tensor({floats}, abi::DType::float32);
  float* transposed = nullptr;
  if (a.primary_weight) {
    transposed = scratch.floats(padded(t.c) * t.m);
    kernels().pack({dense(*a.primary_weight, scratch), 1, t.c, t.c, t.m, nullptr, nullptr, transposed});
  }
  const int64_t kernel = t.cheap.kernel, taps = kernel * kernel;
  const float* cheap_weight = dense(a.cheap_weight, scratch);
  ModuleBackward b{t,
                   Map(grad_out),
                   Map(grad_x),
                   kept,
                   pack_cheap(cheap_weight, kernel, kept, nullptr, scratch, true),
                   transposed,
                   a.primary_weight ? scratch.zeros(groups * t.c * padded(t.m)) : nullptr,
                   scratch.zeros(groups * taps * sum_floats(kept)),
                   through.data<float>(),
                   NormGradient(t.primary, t.m, groups, scratch),
                   NormGradient(t.cheap_norm, kept, groups, scratch),
                   {}};
  std::optional<Tensor> grad_gate;
  if (s.gate) grad_gate = make_gate_gradient(b, *s.gate, scratch);

  const auto f = [&](int64_t n) { return scratch.zeros(n); };
  float *gamma1_grad = f(t.m), *beta1_grad = f(t.m), *slope1_grad = f(t.m);
  float *gamma2_grad = f(cheap_channels), *beta2_grad = f(cheap_channels), *slope2_grad = f(cheap_channels);
  if (s.primary)
    b.t.keep_z1(const_cast<float*>(dense(*s.primary, scratch)), t.m);
  else if (t.bands() == 1 && worth_keeping_z1(t))
    b.t.z1_out = scratch.floats(floats);
  cheap_norm_sums(b);
  if (b.t.z1_out) b.t.keep_z1(std::exchange(b.t.z1_out, nullptr), by_eight(t.m));
  b.norm2.finish(kept, t.values(), gamma2_grad, beta2_grad, slope2_grad);
  primary_norm_sums(b);
  b.norm1.finish(t.m, t.values(), gamma1_grad, beta1_grad, slope1_grad);
  (a.primary_weight ? primary_gradients : given_z1_gradient)(b);

  const float* w1_grad = a.primary_weight ? transposed_sums(b.grad_w1, groups, t.c, t.m, scratch) : nullptr;
  const std::vector<double> w2_sum = combine(b.grad_w2, groups, taps * sum_floats(kept), taps * sum_floats(kept));
  float* w2_grad = f(cheap_channels * taps);
  for (int64_t j = 0; j < kept; j++)
    for (int64_t i = 0; i < taps; i++) {
      const double* sum = &w2_sum[i * sum_floats(kept) + j];
      w2_grad[j * taps + i] = static_cast<float>(sum[0] - sum[padded(kept)]);
    }
  const abi::DType dtype = a.x.dtype();
  return {std::move(grad_x),
          grad_gate ? finish_gate_gradient(b, std::move(*grad_gate)) : abi::empty({0}, dtype),
          w1_grad ? result(w1_grad, {t.m, t.c, 1, 1}, a.primary_weight->dtype()) : abi::empty({0}, dtype),
          given(a.primary_gamma, gamma1_grad, t.m, dtype),
          given(a.primary_beta, beta1_grad, t.m, dtype),
          result(w2_grad, {cheap_channels, 1, kernel, kernel}, a.cheap_weight.dtype()),
          given(a.cheap_gamma, gamma2_grad, cheap_channels, dtype),
          given(a.cheap_beta, beta2_grad, cheap_channels, dtype),
          given(a.act_weight, slope1_grad, t.m, dtype),
          given(a.cheap_act_weight, slope2_grad, cheap_channels, dtype)};
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
      !cheap_kernel_known(w2) || lacks_statistics(x))
    return abi::call<Results<9>>("ghost_ops::ghost_module_train_backward_reference", "", grad_out, x, w1, gamma1, beta1,
                                 w2, gamma2, beta2, act_weight, cheap_act_weight, mean1, var1, mean2, var2, primary,
                                 out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2);
  const TrainArguments arguments{"ghost_module_train_backward",
                                 x,
                                 &w1,
                                 gamma1,
                                 beta1,
                                 w2,
                                 gamma2,
                                 beta2,
                                 act_weight,
                                 cheap_act_weight,
                                 out_channels,
                                 act,
                                 cheap_act,
                                 act_slope,
                                 cheap_act_slope,
                                 eps1,
                                 eps2};
  auto [gx, ggate, gw1, ggamma1, gbeta1, gw2, ggamma2, gbeta2, gact, gcheap_act] =
      backward(arguments, grad_out, {mean1, var1, mean2, var2, nullptr, primary ? &*primary : nullptr});
  return {std::move(gx),      std::move(gw1),    std::move(ggamma1), std::move(gbeta1),    std::move(gw2),
          std::move(ggamma2), std::move(gbeta2), std::move(gact),    std::move(gcheap_act)};
}

GHOST_OPERATOR(ghost_module_train_backward);

Results<10> ghost_module_train_gated_backward(const Tensor& grad_out, const Tensor& x, const Tensor& gate,
                                              const Tensor& w1, const Optional& gamma1, const Optional& beta1,
                                              const Tensor& w2, const Optional& gamma2, const Optional& beta2,
                                              const Optional& act_weight, const Optional& cheap_act_weight,
                                              const Tensor& mean1, const Tensor& var1, const Tensor& mean2,
                                              const Tensor& var2, int64_t out_channels, int64_t act, int64_t cheap_act,
                                              double act_slope, double cheap_act_slope, double eps1, double eps2) {
  if (!all_readable(grad_out, x, gate, w1, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight, mean1, var1,
                    mean2, var2) ||
      !cheap_kernel_known(w2) || lacks_statistics(x))
    return abi::call<Results<10>>("ghost_ops::ghost_module_train_gated_backward_reference", "", grad_out, x, gate, w1,
                                  gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight, mean1, var1, mean2,
                                  var2, out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2);
  return backward({"ghost_module_train_gated_backward", x, &w1, gamma1, beta1, w2, gamma2, beta2, act_weight,
                   cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2},
                  grad_out, {mean1, var1, mean2, var2, &gate, nullptr});
}

GHOST_OPERATOR(ghost_module_train_gated_backward);

Results<8> cheap_concat_train_backward(const Tensor& grad_out, const Tensor& z, const Optional& gamma1,
                                       const Optional& beta1, const Tensor& w2, const Optional& gamma2,
                                       const Optional& beta2, const Optional& act_weight,
                                       const Optional& cheap_act_weight, const Tensor& mean1, const Tensor& var1,
                                       const Tensor& mean2, const Tensor& var2, int64_t out_channels, int64_t act,
                                       int64_t cheap_act, double act_slope, double cheap_act_slope, double eps1,
                                       double eps2) {
  if (!all_readable(grad_out, z, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight, mean1, var1, mean2,
                    var2) ||
      !cheap_kernel_known(w2) || lacks_statistics(z))
    return abi::call<Results<8>>("ghost_ops::cheap_concat_train_backward_reference", "", grad_out, z, gamma1, beta1, w2,
                                 gamma2, beta2, act_weight, cheap_act_weight, mean1, var1, mean2, var2, out_channels,
                                 act, cheap_act, act_slope, cheap_act_slope, eps1, eps2);
  auto [gz, ggate, gw1, ggamma1, gbeta1, gw2, ggamma2, gbeta2, gact, gcheap_act] =
      backward({"cheap_concat_train_backward", z, nullptr, gamma1, beta1, w2, gamma2, beta2, act_weight,
                cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2},
               grad_out, {mean1, var1, mean2, var2, nullptr, nullptr});
  return {std::move(gz),      std::move(ggamma1), std::move(gbeta1), std::move(gw2),
          std::move(ggamma2), std::move(gbeta2),  std::move(gact),   std::move(gcheap_act)};
}

GHOST_OPERATOR(cheap_concat_train_backward);

}  // namespace ghost
