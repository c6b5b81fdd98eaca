#include "branched_module.h"

namespace ghost {

bool branched_known(const BranchedArguments& a) {
  return all_readable(a.x, a.gate, a.primary_weight, a.primary_gamma, a.primary_beta, a.cheap_weight, a.scale_weight,
                      a.cheap_gamma, a.cheap_beta) &&
         cheap_kernel_known(a.cheap_weight) && a.x.dim() == 4 && a.x.numel() > a.x.size(1);
}

BranchedContext make_context(const BranchedArguments& a, Scratch& scratch) {
  const Checks check(a.op);
  check.map("x", a.x);
  const int64_t c = a.x.size(1);
  check.shape("primary_weight", a.primary_weight, {-1, c, 1, 1});
  const int64_t all = a.primary_weight.size(0);
  check.that(a.branches > 0 && all > 0 && all % a.branches == 0, "branches", "a divisor of the primary channels",
             a.branches);
  const int64_t m = all / a.branches;
  check.shape("cheap_weight", a.cheap_weight, {-1, 1, -1, -1});
  const int64_t cheap_all = a.cheap_weight.size(0);
  check.that(cheap_all > 0 && cheap_all % m == 0, "cheap_weight", "a positive multiple of a branch's channels first",
             cheap_all);
  const int64_t depthwise = cheap_all / m, cheap = depthwise + (a.scale_weight ? 1 : 0) + (a.identity ? 1 : 0);
  check.shape("scale_weight", a.scale_weight, {m, 1, 1, 1});
  check.shape("primary_gamma", a.primary_gamma, {all});
  check.shape("primary_beta", a.primary_beta, {all});
  check.shape("cheap_gamma", a.cheap_gamma, {cheap * m});
  check.shape("cheap_beta", a.cheap_beta, {cheap * m});
  check.that(a.out_channels >= m && a.out_channels <= 2 * m, "out_channels", "one to two times a branch's channels",
             a.out_channels);
  check.that(a.act >= 0 && a.act < kActs && slope_kind(static_cast<Act>(a.act)) != kWeight, "act",
             "the code of an activation without a weight", a.act);
  check.that(a.cheap_act >= 0 && a.cheap_act < kActs && slope_kind(static_cast<Act>(a.cheap_act)) != kWeight,
             "cheap_act", "the code of an activation without a weight", a.cheap_act);

  BranchedContext t;
  t.x = Map(a.x);
  t.n = t.x.n, t.h = t.x.h, t.w = t.x.w, t.c = c, t.m = m;
  t.kernel = a.cheap_weight.size(2);
  t.first = a.out_channels == m ? 0 : m, t.kept = a.out_channels - t.first;
  t.act = static_cast<Act>(a.act), t.cheap_act = static_cast<Act>(a.cheap_act);
  t.slope = pack_slopes(t.act, a.act_slope, std::nullopt, m, scratch);
  t.cheap_slope = pack_slopes(t.cheap_act, a.cheap_act_slope, std::nullopt, m, scratch);
  const auto norms = [&](int64_t count, const std::optional<abi::Tensor>& gamma, const std::optional<abi::Tensor>& beta,
                         double eps) {
    std::vector<BatchNormState> out(count);
    const float *g = dense(gamma, scratch), *b = dense(beta, scratch);
    for (int64_t i = 0; i < count; i++) {
      out[i].channels = m, out[i].eps = eps;
      out[i].gamma = g ? g + i * m : nullptr, out[i].beta = b ? b + i * m : nullptr;
      out[i].allocate(scratch);
    }
    return out;
  };
  t.primary = norms(a.branches, a.primary_gamma, a.primary_beta, a.primary_eps);
  t.cheap = norms(cheap, a.cheap_gamma, a.cheap_beta, a.cheap_eps);
  t.scales = a.scale_weight.has_value(), t.identity = a.identity;
  if (a.scale_weight) {
    const float* w = dense(*a.scale_weight, scratch);
    t.scale.assign(w, w + m);
  }
  const float* w2 = dense(a.cheap_weight, scratch);
  for (int64_t i = 0; i < depthwise; i++) {
    const float* from = w2 + i * m * t.taps();
    t.weights.push_back(pack_cheap(from, t.kernel, m, nullptr, scratch));
    t.flipped.push_back(pack_cheap(from, t.kernel, m, nullptr, scratch, true));
  }
  const float* w1 = dense(a.primary_weight, scratch);
  t.stacked = w1;
  if (t.pixel() != m) {
    float* apart = scratch.zeros(t.products() * c);
    for (int64_t i = 0; i < a.branches; i++) std::copy_n(w1 + i * m * c, m * c, apart + i * t.pixel() * c);
    t.stacked = apart;
  }
  float* panels = scratch.floats(panel_floats(t.products(), c));
  kernels().pack({t.stacked, c, 1, t.products(), c, nullptr, nullptr, panels});
  t.panels = panels;
  if (a.gate) {
    check.shape("gate", *a.gate, {t.n, a.out_channels, -1, -1});
    check.that(a.gate->size(2) > 0 && a.gate->size(3) > 0, "gate", "at least one pixel", Checks::text(*a.gate));
    t.gate = make_gate(*a.gate, t.h, t.w, scratch);
  }
  return t;
}

void set_pointwise_statistics(BranchedContext& t, const float* mean, const float* var) {
  const auto set = [&](BatchNormState& norm, const float* scale) {
    for (int64_t i = 0; i < t.m; i++) {
      const double s = scale ? scale[i] : 1.0;
      norm.mean[i] = static_cast<float>(mean[i] * s), norm.var[i] = static_cast<float>(var[i] * s * s);
    }
  };
  size_t next = t.weights.size();
  if (t.scales) set(t.cheap[next++], t.scale.data());
  if (t.identity) set(t.cheap[next], nullptr);
}

int64_t BranchedContext::groups() const {
  if (values() * c * products() < kSerialFlops) return 1;
  return std::min(gate ? n : all_rows(), abi::num_threads());
}

Rows BranchedContext::read_x(int64_t row, int64_t count, Scratch& scratch) const {
  if (is_flat(x)) return {reinterpret_cast<float*>(x.data) + row * w * x.pixel, x.pixel};
  const int64_t to_pixel = padded(c);
  float* to = scratch.floats(count * w * to_pixel);
  for_images(row, count, [&](int64_t image, int64_t y, int64_t part, int64_t done) {
    kernels().gather({x.at(image, y), x.bf16, x.channel, x.row, x.pixel}, part, w, c, to + done * w * to_pixel,
                     w * to_pixel, to_pixel);
  });
  return {to, to_pixel};
}

void BranchedContext::product(const Rows& from, int64_t row, int64_t count, float* z) const {
  const Rows to = at(z, row, products());
  kernels().gemm(
      {from.data, from.pixel, 1, count * w, c, products(), panels, 0, nullptr, to.data, to.pixel, true, false, false});
}

void BranchedContext::set_affine(Scratch& scratch) {
  minus_scale.clear(), minus_shift.clear();
  for (BatchNormState& norm : primary) {
    norm.set_affine();
    float *scale = scratch.zeros(padded(m)), *shift = scratch.zeros(padded(m));
    for (int64_t i = 0; i < m; i++) scale[i] = -norm.scale[i], shift[i] = -norm.shift[i];
    minus_scale.push_back(scale), minus_shift.push_back(shift);
  }
  for (BatchNormState& norm : cheap) norm.set_affine();
}

void BranchedContext::sum_branches(float* z, int64_t row, int64_t count, const Rows& to) const {
  const Rows from = at(z, row, products());
  const int64_t pixels = count * w;
  kernels().affine(from.data, from.pixel, {primary[0].scale, primary[0].shift, kNone, nullptr}, to.data, to.pixel,
                   pixels, m);
  for (size_t b = 1; b < primary.size(); b++) {
    NormBackward sum{};  // to + scale z + shift, as it computes to - c0 - c1 z
    sum.pixels = pixels, sum.channels = m;
    sum.z = from.data + static_cast<int64_t>(b) * pixel(), sum.z_pixel = from.pixel;
    sum.grad = sum.out = to.data, sum.grad_pixel = sum.out_pixel = to.pixel;
    sum.c0 = minus_shift[b], sum.c1 = minus_scale[b];
    kernels().norm_backward(sum);
  }
}

void BranchedContext::activate(float* z, int64_t row, int64_t count, float* y1) const {
  const Rows to = at(y1, row);
  if (primary.size() == 1) {
    const Rows from = at(z, row, products());
    kernels().affine(from.data, from.pixel, {primary[0].scale, primary[0].shift, act, slope}, to.data, to.pixel,
                     count * w, m);
    return;
  }
  sum_branches(z, row, count, to);
  if (act != kNone)
    kernels().affine(to.data, to.pixel, {nullptr, nullptr, act, slope}, to.data, to.pixel, count * w, m);
}

std::vector<const float*> BranchedContext::window(const float* map, int64_t image, int64_t y, int64_t count,
                                                  const float* zeros) const {
  std::vector<const float*> rows;
  rows.reserve(count + 2 * halo());
  for (int64_t i = y - halo(); i < y + count + halo(); i++)
    rows.push_back(i < 0 || i >= h ? zeros : map + (image * h + i) * w * pixel());
  return rows;
}

void BranchedContext::convolve(const std::vector<const float*>& rows, const float* weight, const float* bias,
                               int64_t channels, int64_t count, const Rows& to, bool relu) const {
  kernels().depthwise({rows.data(), pixel(), count, w, channels, kernel, weight, padded(m), bias, to.data, w * to.pixel,
                       to.pixel, relu});
}

MergedCheap::MergedCheap(const BranchedContext& t, Scratch& scratch)
    : weight(scratch.zeros(t.taps() * padded(t.m))), bias(scratch.zeros(padded(t.m))) {
  const int64_t pad = padded(t.m), branches = t.depthwise_branches();
  for (int64_t c = 0; c < t.m; c++) {
    double shift = 0;
    for (const BatchNormState& norm : t.cheap) shift += norm.shift[c];
    bias[c] = static_cast<float>(shift);
    double centre = 0;  // of the branches that read a pixel each
    size_t next = branches;
    if (t.scales) centre += static_cast<double>(t.cheap[next++].scale[c]) * t.scale[c];
    if (t.identity) centre += t.cheap[next].scale[c];
    for (int64_t i = 0; i < t.taps(); i++) {
      double total = i == t.taps() / 2 ? centre : 0.0;
      for (int64_t b = 0; b < branches; b++)
        total += static_cast<double>(t.cheap[b].scale[c]) * t.weights[b][i * pad + c];
      weight[i * pad + c] = static_cast<float>(total);
    }
  }
}

}  // namespace ghost
