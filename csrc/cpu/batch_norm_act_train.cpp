// batch_norm_act_train: BatchNorm over batch statistics and activation of a map. Forward: one pass takes the
// statistics, one writes the output. Backward: one pass takes the sums, one writes the gradient. Each reads the map
// once.
#include "batch_norm.h"
#include "operator.h"

namespace ghost {
namespace {

struct Arguments {
  const char* op;
  const Tensor& z;
  const Optional &gamma, &beta, &act_weight;
  int64_t act;
  double act_slope, eps;
};

struct NormContext {
  Map z;
  BatchNormState norm;
  int64_t step = 1, bands = 1, groups = 1;

  NormContext(const Arguments& a, Scratch& scratch) {
    const Checks check(a.op);
    check.map("z", a.z);
    const int64_t channels = a.z.size(1);
    check.shape("gamma", a.gamma, {channels});
    check.shape("beta", a.beta, {channels});
    check.that(a.act >= 0 && a.act < kActs, "act", "an activation's code", a.act);
    check.slopes("act_weight", a.act == kPrelu, a.act_weight, channels);
    z = Map(a.z);
    norm.channels = channels, norm.act = static_cast<Act>(a.act), norm.eps = a.eps;
    norm.slope = pack_slopes(norm.act, a.act_slope, a.act_weight, channels, scratch);
    norm.gamma = dense(a.gamma, scratch), norm.beta = dense(a.beta, scratch);
    norm.allocate(scratch);
    constexpr int64_t kStepFloats = 1 << 12;  // of a map: as many as a core's first cache holds
    step = std::max<int64_t>(1, std::min(z.h, kStepFloats / (z.w * channels)));
    bands = bands_for(z.n, z.h, abi::num_threads());
    const bool small = z.n * z.h * z.w * channels * kFlops < kSerialFlops;
    groups = small ? 1 : std::min(z.n * bands, abi::num_threads());
  }

  static constexpr int64_t kFlops = 4;  // of a value, in the cheapest pass
  int64_t values() const { return z.n * z.h * z.w; }

  /// body(group, image, first row, number of rows) for every step, the groups in parallel; backwards where asked, so
  /// that a pass starts with what the one before it left in cache.
  template <class Body>
  void for_steps(bool backwards, const Body& body) const {
    const int64_t units = z.n * bands;
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) {
        const int64_t first = units * g / groups, last = units * (g + 1) / groups;
        for (int64_t i = first; i < last; i++) {
          const int64_t unit = backwards ? last - 1 - (i - first) : i, band = unit % bands;
          const int64_t top = z.h * band / bands, bottom = z.h * (band + 1) / bands;
          for (int64_t y = top; y < bottom; y += step) body(g, unit / bands, y, std::min(step, bottom - y));
        }
      }
    });
  }
};

}  // namespace

Results<3> batch_norm_act_train(const Tensor& z, const Optional& gamma, const Optional& beta,
                                const Optional& act_weight, int64_t act, double act_slope, double eps) {
  if (!all_readable(z, gamma, beta, act_weight) || lacks_statistics(z))
    return abi::call<Results<3>>("ghost_ops::batch_norm_act_train_reference", "", z, gamma, beta, act_weight, act,
                                 act_slope, eps);
  Scratch scratch;
  NormContext t({"batch_norm_act_train", z, gamma, beta, act_weight, act, act_slope, eps}, scratch);
  const int64_t channels = t.norm.channels;
  Moments moments(t.groups, channels, scratch);
  t.for_steps(false, [&](int64_t group, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    const Rows in = read_rows(t.z, image, y, count, own.floats(rows_scratch(t.z, count)));
    moments.add(group, in.data, in.pixel, count * t.z.w);
  });
  moments.finish(t.norm.mean, t.norm.var);
  t.norm.set_affine();
  Tensor out = new_map({t.z.n, channels, t.z.h, t.z.w}, z);
  const Map to(out);
  t.for_steps(true, [&](int64_t, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    const Rows in = read_rows(t.z, image, y, count, own.floats(rows_scratch(t.z, count)));
    const Rows put = rows_to_write(to, image, y, own.floats(rows_scratch(to, count)));
    kernels().affine(in.data, in.pixel, t.norm.affine(), put.data, put.pixel, count * t.z.w, channels);
    finish_rows(to, image, y, count, put);
  });
  const auto f32 = abi::DType::float32;
  return {std::move(out), result(t.norm.mean, {channels}, f32), result(t.norm.var, {channels}, f32)};
}

GHOST_OPERATOR(batch_norm_act_train);

Results<4> batch_norm_act_train_backward(const Tensor& grad_out, const Tensor& z, const Optional& gamma,
                                         const Optional& beta, const Optional& act_weight, const Tensor& mean,
                                         const Tensor& var, int64_t act, double act_slope, double eps) {
  if (!all_readable(grad_out, z, gamma, beta, act_weight, mean, var) || lacks_statistics(z))
    return abi::call<Results<4>>("ghost_ops::batch_norm_act_train_backward_reference", "", grad_out, z, gamma, beta,
                                 act_weight, mean, var, act, act_slope, eps);
  Scratch scratch;
  NormContext t({"batch_norm_act_train_backward", z, gamma, beta, act_weight, act, act_slope, eps}, scratch);
  const int64_t channels = t.norm.channels;
  const Checks check("batch_norm_act_train_backward");
  check.shape("grad_out", grad_out, {t.z.n, channels, t.z.h, t.z.w});
  check.shape("mean", mean, {channels});
  check.shape("var", var, {channels});
  std::copy_n(dense(mean, scratch), channels, t.norm.mean);
  std::copy_n(dense(var, scratch), channels, t.norm.var);
  t.norm.set_affine();
  const NormGradient gradient(t.norm, channels, t.groups, scratch);
  const Map grad(grad_out);
  const auto call = [&](int64_t image, int64_t y, int64_t count, Scratch& own) {
    const Rows in = read_rows(t.z, image, y, count, own.floats(rows_scratch(t.z, count)));
    const Rows g = read_rows(grad, image, y, count, own.floats(rows_scratch(grad, count)));
    return gradient.call(count * t.z.w, channels, in, g);
  };
  t.for_steps(false, [&](int64_t group, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    gradient.add_sums(group, call(image, y, count, own));
  });
  float *grad_gamma = scratch.floats(channels), *grad_beta = scratch.floats(channels),
        *grad_slope = scratch.floats(channels);
  gradient.finish(channels, t.values(), grad_gamma, grad_beta, grad_slope);
  Tensor grad_z = new_map({t.z.n, channels, t.z.h, t.z.w}, z);
  const Map to(grad_z);
  t.for_steps(true, [&](int64_t, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    const Rows put = rows_to_write(to, image, y, own.floats(rows_scratch(to, count)));
    gradient.write(call(image, y, count, own), put.data, put.pixel);
    finish_rows(to, image, y, count, put);
  });
  const abi::DType dtype = z.dtype();
  return {std::move(grad_z), given(gamma, grad_gamma, channels, dtype), given(beta, grad_beta, channels, dtype),
          given(act_weight, grad_slope, channels, dtype)};
}

GHOST_OPERATOR(batch_norm_act_train_backward);

}  // namespace ghost
