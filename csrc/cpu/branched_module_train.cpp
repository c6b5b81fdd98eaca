// branched_module_train: a pass for the primary statistics, one for y1, one for the cheap statistics, one for the
// output, in which all branches of the cheap sum are one convolution.
#include "branched_module.h"
#include "operator.h"

namespace ghost {
namespace {

/// z, and the statistics of the primary branches.
void make_products(BranchedContext& t, float* z, Scratch& scratch) {
  const int64_t groups = t.groups();
  std::vector<Moments> moments;
  for (size_t b = 0; b < t.primary.size(); b++) moments.emplace_back(groups, t.m, scratch);
  t.for_rows(t.product_step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    t.product(t.read_x(row, count, own), row, count, z);
    const Rows made = t.at(z, row, t.products());
    for (size_t b = 0; b < moments.size(); b++)
      moments[b].add(group, made.data + static_cast<int64_t>(b) * t.pixel(), made.pixel, count * t.w);
  });
  for (size_t b = 0; b < moments.size(); b++) moments[b].finish(t.primary[b].mean, t.primary[b].var);
}

/// y1, and the statistics of the branches that read a pixel of it each.
void make_y1(BranchedContext& t, float* z, float* y1, Scratch& scratch) {
  Moments moments(t.groups(), t.m, scratch);
  const bool needed = t.scales || t.identity;
  t.for_rows(t.product_step(), [&](int64_t group, int64_t row, int64_t count) {
    t.activate(z, row, count, y1);
    if (needed) moments.add(group, t.at(y1, row).data, t.pixel(), count * t.w);
  });
  if (!needed) return;
  float *mean = scratch.zeros(t.m), *var = scratch.zeros(t.m);
  moments.finish(mean, var);
  set_pointwise_statistics(t, mean, var);
}

void depthwise_statistics(BranchedContext& t, const float* y1, Scratch& scratch) {
  std::vector<Moments> moments;
  for (size_t b = 0; b < t.weights.size(); b++) moments.emplace_back(t.groups(), t.m, scratch);
  const float* zeros = scratch.zeros(t.w * t.pixel());
  t.for_steps([&](int64_t group, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    const auto rows = t.window(y1, image, y, count, zeros);
    const Rows z2{own.floats(count * t.w * t.pixel()), t.pixel()};
    for (size_t b = 0; b < moments.size(); b++) {
      t.convolve(rows, t.weights[b], nullptr, t.m, count, z2);
      moments[b].add(group, z2.data, z2.pixel, count * t.w);
    }
  });
  for (size_t b = 0; b < moments.size(); b++) moments[b].finish(t.cheap[b].mean, t.cheap[b].var);
}

void write_output(const BranchedContext& t, float* y1, const Map& out, Scratch& scratch) {
  const MergedCheap merged(t, scratch);
  const float* zeros = scratch.zeros(t.w * t.pixel());
  t.for_steps([&](int64_t, int64_t image, int64_t y, int64_t count) {
    Scratch own;
    float* out_rows = own.floats(rows_scratch(out, count));
    if (t.first) {
      const Rows from = t.at(y1, image * t.h + y), to = rows_to_write(out, image, y, out_rows, 0, t.m);
      if (t.gate)
        t.gate.multiply(from, image, y, count, 0, t.m, to);
      else
        kernels().affine(from.data, from.pixel, {nullptr, nullptr, kNone, nullptr}, to.data, to.pixel, count * t.w,
                         t.m);
      finish_rows(out, image, y, count, to, 0, t.m);
    }
    const Rows to = rows_to_write(out, image, y, out_rows, t.first, t.kept);
    const bool relu = t.cheap_act == kRelu;
    t.convolve(t.window(y1, image, y, count, zeros), merged.weight, merged.bias, t.kept, count, to, relu);
    if (!relu && t.cheap_act != kNone)
      kernels().affine(to.data, to.pixel, {nullptr, nullptr, t.cheap_act, t.cheap_slope}, to.data, to.pixel,
                       count * t.w, t.kept);
    if (t.gate) t.gate.multiply(to, image, y, count, t.first, t.kept, to);
    finish_rows(out, image, y, count, to, t.first, t.kept);
  });
}

/// The means or variances of BatchNorms, one after the other.
Tensor joined(const std::vector<BatchNormState>& norms, int64_t m, float* BatchNormState::* which) {
  Tensor out = abi::empty({static_cast<int64_t>(norms.size()) * m}, abi::DType::float32);
  for (size_t b = 0; b < norms.size(); b++)
    std::copy_n(norms[b].*which, m, out.data<float>() + static_cast<int64_t>(b) * m);
  return out;
}

}  // namespace

Results<6> branched_module_train(const Tensor& x, const Optional& gate, const Tensor& w1, const Optional& gamma1,
                                 const Optional& beta1, const Tensor& w2, const Optional& scale_weight,
                                 const Optional& gamma2, const Optional& beta2, int64_t branches, bool identity,
                                 int64_t out_channels, int64_t act, int64_t cheap_act, double act_slope,
                                 double cheap_act_slope, double eps1, double eps2, bool keep_products) {
  const BranchedArguments a{"branched_module_train",
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
  if (!branched_known(a))
    return abi::call<Results<6>>("ghost_ops::branched_module_train_reference", "", x, gate, w1, gamma1, beta1, w2,
                                 scale_weight, gamma2, beta2, branches, identity, out_channels, act, cheap_act,
                                 act_slope, cheap_act_slope, eps1, eps2, keep_products);
  Scratch scratch;
  BranchedContext t = make_context(a, scratch);
  const auto f32 = abi::DType::float32;
  Tensor made = new_map({t.n, out_channels, t.h, t.w}, x);
  Tensor products = new_tensor({t.n, t.h, t.w, branches, t.pixel()}, f32);
  Tensor y1 = new_tensor({t.values() * t.pixel()}, f32);
  make_products(t, products.data<float>(), scratch);
  t.set_affine(scratch);
  make_y1(t, products.data<float>(), y1.data<float>(), scratch);
  depthwise_statistics(t, y1.data<float>(), scratch);
  t.set_affine(scratch);
  write_output(t, y1.data<float>(), Map(made), scratch);
  if (!keep_products) products = abi::empty({0}, f32);
  return {std::move(made),
          joined(t.primary, t.m, &BatchNormState::mean),
          joined(t.primary, t.m, &BatchNormState::var),
          joined(t.cheap, t.m, &BatchNormState::mean),
          joined(t.cheap, t.m, &BatchNormState::var),
          std::move(products)};
}

GHOST_OPERATOR(branched_module_train);

}  // namespace ghost
