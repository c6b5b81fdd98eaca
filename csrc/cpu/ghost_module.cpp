// ghost_module, cheap_concat, and both with BatchNorms over running statistics (_eval): tensors to the pointers of one
// single pass.
#include "operator.h"
#include "single_pass.h"

namespace ghost {
namespace {

/// A BatchNorm over running statistics, as a scale of the convolution before it and a bias after it.
struct Folded {
  const float* scale = nullptr;
  const float* bias = nullptr;  // padded, or null
};

struct Norm {
  const Optional &gamma, &beta;
  const Tensor *mean, *var;  // null where there is no BatchNorm
  double eps;
};

const Tensor* pointer(const Optional& t) { return t ? &*t : nullptr; }

Folded fold(const Optional& bias, const Norm* norm, int64_t channels, Scratch& scratch) {
  const float* b = dense(bias, scratch);
  if (!norm || !norm->mean) return {nullptr, b ? padded_copy(b, channels, scratch) : nullptr};
  float *scale = scratch.floats(channels), *shift = scratch.zeros(padded(channels));
  kernels().fold({channels, b, dense(norm->gamma, scratch), dense(norm->beta, scratch), dense(*norm->mean, scratch),
                  dense(*norm->var, scratch), norm->eps, scale, shift});
  return {scale, shift};
}

void check_norm(const Checks& check, const char* half, const Norm& norm, int64_t channels) {
  const std::string name = half;
  check.that(norm.mean || !(norm.gamma || norm.beta || norm.var), (name + "_mean").c_str(),
             "a tensor with the rest of a BatchNorm", "none");
  check.that(!norm.mean || norm.var, (name + "_var").c_str(), "a tensor with the mean", "none");
  check.shape((name + "_gamma").c_str(), norm.gamma, {channels});
  check.shape((name + "_beta").c_str(), norm.beta, {channels});
  if (norm.mean) check.shape((name + "_mean").c_str(), *norm.mean, {channels});
  if (norm.var) check.shape((name + "_var").c_str(), *norm.var, {channels});
}

/// What the operators have in common, after their own arguments are read.
struct ModuleArguments {
  const char* op;
  const Tensor& x;
  const Tensor* primary_weight;
  const Optional& primary_bias;
  const Norm* primary_norm;
  const Tensor* cheap_weight;
  const Optional& cheap_bias;
  const Norm* cheap_norm;
  const Optional &input_scale, &residual, &act_weight, &cheap_act_weight;
  int64_t out_channels, act, cheap_act;
  double act_slope, cheap_act_slope;
  bool return_squeeze;
};

Results<2> run_module(const ModuleArguments& c) {
  const Checks check(c.op);
  check.map("x", c.x);
  const int64_t n = c.x.size(0), channels = c.x.size(1), h = c.x.size(2), w = c.x.size(3);
  if (c.primary_weight) check.shape("primary_weight", *c.primary_weight, {-1, channels, 1, 1});
  const int64_t m = c.primary_weight ? c.primary_weight->size(0) : channels;
  check.that(m > 0, "primary_weight", "at least one output channel", m);
  check.shape("primary_bias", c.primary_bias, {m});
  const int64_t cheap_channels = c.cheap_weight ? c.cheap_weight->size(0) : 0;
  if (c.cheap_weight) {
    check.shape("cheap_weight", *c.cheap_weight, {-1, 1, -1, -1});
    check.that(cheap_channels > 0 && cheap_channels % m == 0, "cheap_weight",
               "a positive multiple of the primary channels first", cheap_channels);
    check.shape("cheap_bias", c.cheap_bias, {cheap_channels});
  }
  if (c.primary_norm) check_norm(check, "primary", *c.primary_norm, m);
  if (c.cheap_norm) check_norm(check, "cheap", *c.cheap_norm, cheap_channels);
  check.that(c.out_channels >= (cheap_channels ? m + 1 : m) && c.out_channels <= m + cheap_channels, "out_channels",
             "more than the primary and at most all channels", c.out_channels);
  check.that(c.act >= 0 && c.act < kActs, "act", "an activation's code", c.act);
  check.that(c.cheap_act >= 0 && c.cheap_act < kActs, "cheap_act", "an activation's code", c.cheap_act);
  check.slopes("act_weight", c.act == kPrelu, c.act_weight, m);
  check.slopes("cheap_act_weight", cheap_channels && c.cheap_act == kPrelu, c.cheap_act_weight, cheap_channels);
  check.shape("input_scale", c.input_scale, {n, channels});
  check.shape("residual", c.residual, {n, c.out_channels, h, w});

  const abi::DType dtype = c.x.dtype();
  Results<2> result{new_map({n, c.out_channels, h, w}, c.x), abi::empty({0}, dtype)};
  Scratch scratch;
  SinglePass p;
  p.x = Map(c.x);
  p.out = Map(std::get<0>(result));
  Map residual;
  if (c.residual) residual = Map(*c.residual), p.residual = &residual;
  p.m = m;
  p.act = static_cast<Act>(c.act);
  p.cheap_act = cheap_channels ? static_cast<Act>(c.cheap_act) : kNone;
  p.slope = pack_slopes(p.act, c.act_slope, c.act_weight, m, scratch);
  if (c.primary_weight) p.primary = dense(*c.primary_weight, scratch);
  const Folded of_primary = fold(c.primary_bias, c.primary_norm, m, scratch);
  p.primary_scale = of_primary.scale, p.bias = of_primary.bias;
  p.input_scale = dense(c.input_scale, scratch);
  if (cheap_channels) {
    p.cheap_slope = pack_slopes(p.cheap_act, c.cheap_act_slope, c.cheap_act_weight, cheap_channels, scratch);
    const Folded folded = fold(c.cheap_bias, c.cheap_norm, cheap_channels, scratch);
    p.cheap.kernel = c.cheap_weight->size(2);
    p.cheap.multiplier = cheap_channels / m;
    p.cheap.channels = c.out_channels - m;
    p.cheap.weight =
        pack_cheap(dense(*c.cheap_weight, scratch), p.cheap.kernel, p.cheap.channels, folded.scale, scratch);
    p.cheap.weight_row = padded(p.cheap.channels);
    p.cheap.bias = folded.bias;
  }
  if (c.return_squeeze) p.squeeze = scratch.floats(n * c.out_channels);
  run_single_pass(p);
  if (c.return_squeeze) std::get<1>(result) = ghost::result(p.squeeze, {n, c.out_channels}, dtype);
  return result;
}

}  // namespace

Results<2> ghost_module(const Tensor& x, const Tensor& w1, const Optional& b1, const Optional& w2, const Optional& b2,
                        const Optional& input_scale, const Optional& residual, const Optional& act_weight,
                        const Optional& cheap_act_weight, int64_t out_channels, int64_t act, int64_t cheap_act,
                        double act_slope, double cheap_act_slope, bool return_squeeze) {
  if (!all_readable(x, w1, b1, w2, b2, input_scale, residual, act_weight, cheap_act_weight) ||
      (w2 && !cheap_kernel_known(*w2)) || x.numel() == 0)
    return abi::call<Results<2>>("ghost_ops::ghost_module_reference", "", x, w1, b1, w2, b2, input_scale, residual,
                                 act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope,
                                 return_squeeze);
  return run_module(ModuleArguments{"ghost_module", x, &w1, b1, nullptr, w2 ? &*w2 : nullptr, b2, nullptr, input_scale,
                                    residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
                                    cheap_act_slope, return_squeeze});
}

GHOST_OPERATOR(ghost_module);

Results<2> ghost_module_eval(const Tensor& x, const Tensor& w1, const Optional& b1, const Optional& gamma1,
                             const Optional& beta1, const Tensor& mean1, const Tensor& var1, const Tensor& w2,
                             const Optional& b2, const Optional& gamma2, const Optional& beta2, const Tensor& mean2,
                             const Tensor& var2, const Optional& input_scale, const Optional& residual,
                             const Optional& act_weight, const Optional& cheap_act_weight, int64_t out_channels,
                             int64_t act, int64_t cheap_act, double act_slope, double cheap_act_slope, double eps1,
                             double eps2, bool return_squeeze) {
  if (!all_readable(x, w1, b1, gamma1, beta1, mean1, var1, w2, b2, gamma2, beta2, mean2, var2, input_scale, residual,
                    act_weight, cheap_act_weight) ||
      !cheap_kernel_known(w2) || x.numel() == 0)
    return abi::call<Results<2>>("ghost_ops::ghost_module_eval_reference", "", x, w1, b1, gamma1, beta1, mean1, var1,
                                 w2, b2, gamma2, beta2, mean2, var2, input_scale, residual, act_weight,
                                 cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, eps1, eps2,
                                 return_squeeze);
  const Norm norm1{gamma1, beta1, &mean1, &var1, eps1}, norm2{gamma2, beta2, &mean2, &var2, eps2};
  return run_module(ModuleArguments{"ghost_module_eval", x, &w1, b1, &norm1, &w2, b2, &norm2, input_scale, residual,
                                    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
                                    cheap_act_slope, return_squeeze});
}

GHOST_OPERATOR(ghost_module_eval);

Results<2> cheap_concat(const Tensor& z, const Tensor& w2, const Optional& b2, const Optional& residual,
                        const Optional& act_weight, const Optional& cheap_act_weight, int64_t out_channels, int64_t act,
                        int64_t cheap_act, double act_slope, double cheap_act_slope, bool return_squeeze) {
  if (!all_readable(z, w2, b2, residual, act_weight, cheap_act_weight) || !cheap_kernel_known(w2) || z.numel() == 0)
    return abi::call<Results<2>>("ghost_ops::cheap_concat_reference", "", z, w2, b2, residual, act_weight,
                                 cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope,
                                 return_squeeze);
  const Optional none;
  return run_module(ModuleArguments{"cheap_concat", z, nullptr, none, nullptr, &w2, b2, nullptr, none, residual,
                                    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
                                    cheap_act_slope, return_squeeze});
}

GHOST_OPERATOR(cheap_concat);

Results<2> cheap_concat_eval(const Tensor& z, const Optional& b1, const Optional& gamma1, const Optional& beta1,
                             const Optional& mean1, const Optional& var1, const Tensor& w2, const Optional& b2,
                             const Optional& gamma2, const Optional& beta2, const Optional& mean2, const Optional& var2,
                             const Optional& residual, const Optional& act_weight, const Optional& cheap_act_weight,
                             int64_t out_channels, int64_t act, int64_t cheap_act, double act_slope,
                             double cheap_act_slope, double eps1, double eps2, bool return_squeeze) {
  if (!all_readable(z, b1, gamma1, beta1, mean1, var1, w2, b2, gamma2, beta2, mean2, var2, residual, act_weight,
                    cheap_act_weight) ||
      !cheap_kernel_known(w2) || z.numel() == 0)
    return abi::call<Results<2>>("ghost_ops::cheap_concat_eval_reference", "", z, b1, gamma1, beta1, mean1, var1, w2,
                                 b2, gamma2, beta2, mean2, var2, residual, act_weight, cheap_act_weight, out_channels,
                                 act, cheap_act, act_slope, cheap_act_slope, eps1, eps2, return_squeeze);
  const Optional none;
  const Norm norm1{gamma1, beta1, pointer(mean1), pointer(var1), eps1};
  const Norm norm2{gamma2, beta2, pointer(mean2), pointer(var2), eps2};
  return run_module(ModuleArguments{"cheap_concat_eval", z, nullptr, b1, &norm1, &w2, b2, &norm2, none, residual,
                                    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
                                    cheap_act_slope, return_squeeze});
}

GHOST_OPERATOR(cheap_concat_eval);

}  // namespace ghost
