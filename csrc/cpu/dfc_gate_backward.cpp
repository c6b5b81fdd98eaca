// dfc_gate_train_backward: from the gate to x, a pass for each BatchNorm's sums. The maps between the convolutions are
// computed again from the product, and that too, from x, where it was not kept.
#include "dfc_gate.h"
#include "operator.h"

namespace ghost {
namespace {

struct DfcBackward {
  DfcContext t;
  Map grad_out, grad_x;
  float *product, *of_rows, *of_columns, *grad_logits, *grad;  // [values x m]; the last is that of a normalised map
  NormGradient norm, row_norm, column_norm;
  float *grad_row, *grad_column, *grad_weight;  // per group: [taps] sums, [taps] sums, [c x padded(m)]
  const float* transposed;                      // packed weight for the gradient of the pooled x

  float* row_of(int64_t group) const { return grad_row + group * t.row.taps * sum_floats(t.m); }
  float* column_of(int64_t group) const { return grad_column + group * t.column.taps * sum_floats(t.m); }
  float* weight_of(int64_t group) const { return grad_weight + group * t.c * padded(t.m); }
};

/// The maps between the convolutions, up to the one that the row convolution makes.
void make_maps(const DfcBackward& b, bool make_product) {
  const DfcContext& t = b.t;
  t.for_rows(t.step(), [&](int64_t, int64_t row, int64_t count) {
    Scratch own;
    if (make_product) t.product(t.pool(row, count, own), row, count, b.product);
    t.convolve_rows(t.normalise(b.product, t.norm, row, count, own), t.row.weight, count, t.at(b.of_rows, row).data);
  });
}

/// The last of these maps, and through the gate: the gradient of its logits, and the sums of the BatchNorm before it.
void column_norm_sums(const DfcBackward& b) {
  const DfcContext& t = b.t;
  t.for_rows(t.column_step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const NormalisedRows in(t, row, count, own);
    kernels().affine(t.at(b.of_rows, in.first()).data, t.m, t.row_norm.affine(), in.data(), t.m, in.count() * t.w, t.m);
    const Rows z = t.at(b.of_columns, row);
    t.convolve_columns(in, t.column.weight, count, z.data);
    const Rows g = t.read(b.grad_out, row, count, own.floats(DfcContext::flat_scratch(b.grad_out, count)));
    NormBackward call = b.column_norm.call(count * t.w, t.m, z, g);
    call.out = t.at(b.grad_logits, row).data, call.out_pixel = t.m;
    b.column_norm.add_sums(group, call);
  });
}

/// Gradient of a convolution's result from that of its BatchNorm's.
void norm_gradient(const NormGradient& norm, const DfcContext& t, float* z, float* grad, int64_t row, int64_t count,
                   float* to) {
  NormBackward call = norm.call(count * t.w, t.m, t.at(z, row), t.at(grad, row));
  call.affine = {nullptr, nullptr, kNone, nullptr};
  norm.write(call, to, t.m);
}

/// Through the column convolution: its weight's gradient, and the sums of the BatchNorm before it.
void column_gradients(const DfcBackward& b) {
  const DfcContext& t = b.t;
  t.for_rows(t.column_step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const NormalisedRows values(t, row, count, own), grads(t, row, count, own);
    const int64_t first = values.first(), wide = values.count();
    kernels().affine(t.at(b.of_rows, first).data, t.m, t.row_norm.affine(), values.data(), t.m, wide * t.w, t.m);
    norm_gradient(b.column_norm, t, b.of_columns, b.grad_logits, first, wide, grads.data());
    const Rows to = t.at(b.grad, row);
    t.convolve_columns(grads, t.column.flipped, count, to.data);
    const auto middle = t.addresses(grads.row(0), count);
    kernels().axis_weight_grad(
        {values.taps(), t.m, count, count, t.w, t.m, t.column.taps, middle.data(), t.m, b.column_of(group)});
    b.row_norm.add_sums(group, b.row_norm.call(count * t.w, t.m, t.at(b.of_rows, row), to));
  });
}

/// Through the row convolution, likewise. `grad_logits` is not needed any more, and takes the gradient.
void row_gradients(const DfcBackward& b) {
  const DfcContext& t = b.t;
  t.for_rows(t.step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const float* values = t.normalise(b.product, t.norm, row, count, own);
    float* grads = own.floats(count * t.w * t.m);
    norm_gradient(b.row_norm, t, b.of_rows, b.grad, row, count, grads);
    const Rows to = t.at(b.grad_logits, row);
    t.convolve_rows(grads, t.row.flipped, count, to.data);
    const auto rows = t.addresses(values, count), of_grads = t.addresses(grads, count);
    kernels().axis_weight_grad(
        {rows.data(), t.m, 0, count, t.w, t.m, t.row.taps, of_grads.data(), t.m, b.row_of(group)});
    b.norm.add_sums(group, b.norm.call(count * t.w, t.m, t.at(b.product, row), to));
  });
}

/// Writes the gradient of x under rows of the pooled one; pixels that no pooling reads get zeros.
void unpool(const DfcBackward& b, const Rows& pooled, int64_t row, int64_t count, float* scratch) {
  const DfcContext& t = b.t;
  const int64_t width = t.x.w;
  for (int64_t i = 0; i < count; i++) {
    const int64_t image = (row + i) / t.h, y = (row + i) % t.h;
    const bool odd = y == t.h - 1 && t.x.h % 2;
    const Rows to = rows_to_write(b.grad_x, image, 2 * y, scratch);
    float *upper = to.data, *lower = upper + width * to.pixel, *below = lower + width * to.pixel;
    kernels().unpool_pairs(pooled.data + i * t.w * pooled.pixel, pooled.pixel, t.w, t.c, upper, lower, to.pixel);
    if (width % 2)
      for (float* line : {upper, lower}) std::fill_n(line + (width - 1) * to.pixel, t.c, 0.f);
    for (int64_t j = 0; odd && j < width; j++) std::fill_n(below + j * to.pixel, t.c, 0.f);
    finish_rows(b.grad_x, image, 2 * y, odd ? 3 : 2, to);
  }
}

void product_gradients(const DfcBackward& b) {
  const DfcContext& t = b.t;
  const int64_t pixel = by_eight(t.m), pooled_pixel = by_eight(t.c);
  t.for_rows(t.step(), [&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const int64_t pixels = count * t.w;
    float *grad = own.floats(pixels * pixel), *grad_pooled = own.floats(pixels * pooled_pixel);
    b.norm.write(b.norm.call(pixels, t.m, t.at(b.product, row), t.at(b.grad_logits, row)), grad, pixel);
    const Rows pooled = t.pool(row, count, own);
    kernels().gemm({pooled.data, 1, pooled.pixel, t.c, pixels, t.m, grad, pixel, nullptr, b.weight_of(group),
                    padded(t.m), true, false, true});
    kernels().gemm(
        {grad, pixel, 1, pixels, t.m, t.c, b.transposed, 0, nullptr, grad_pooled, pooled_pixel, true, false, false});
    unpool(b, {grad_pooled, pooled_pixel}, row, count, own.floats(rows_scratch(b.grad_x, 3)));
  });
}

}  // namespace

Results<10> dfc_gate_train_backward(const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                    const Optional& gamma, const Optional& beta, const Tensor& row_weight,
                                    const Optional& row_gamma, const Optional& row_beta, const Tensor& column_weight,
                                    const Optional& column_gamma, const Optional& column_beta, const Tensor& mean,
                                    const Tensor& var, const Tensor& row_mean, const Tensor& row_var,
                                    const Tensor& column_mean, const Tensor& column_var, const Optional& product,
                                    int64_t gate, double eps, double row_eps, double column_eps) {
  const DfcArguments a{"dfc_gate_train_backward",
                       x,
                       weight,
                       gamma,
                       beta,
                       row_weight,
                       row_gamma,
                       row_beta,
                       column_weight,
                       column_gamma,
                       column_beta,
                       gate,
                       eps,
                       row_eps,
                       column_eps};
  if (!dfc_known(a) || !all_readable(grad_out, mean, var, row_mean, row_var, column_mean, column_var, product))
    return abi::call<Results<10>>("ghost_ops::dfc_gate_train_backward_reference", "", grad_out, x, weight, gamma, beta,
                                  row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, mean, var,
                                  row_mean, row_var, column_mean, column_var, product, gate, eps, row_eps, column_eps);
  Scratch scratch;
  DfcContext t = make_context(a, scratch);
  const Checks check(a.op);
  check.shape("grad_out", grad_out, {t.n, t.m, t.h, t.w});
  check.shape("product", product, {t.n, t.h, t.w, t.m});
  const auto set = [&](BatchNormState& norm, const char* mean_name, const Tensor& mean, const char* var_name,
                       const Tensor& var) {
    check.shape(mean_name, mean, {t.m});
    check.shape(var_name, var, {t.m});
    std::copy_n(dense(mean, scratch), t.m, norm.mean);
    std::copy_n(dense(var, scratch), t.m, norm.var);
    norm.set_affine();
  };
  set(t.norm, "mean", mean, "var", var);
  set(t.row_norm, "row_mean", row_mean, "row_var", row_var);
  set(t.column_norm, "column_mean", column_mean, "column_var", column_var);

  Tensor grad_x = new_map({t.n, t.c, t.x.h, t.x.w}, x);
  const auto small_map = [&] { return new_tensor({t.floats()}, abi::DType::float32); };
  Tensor rows = small_map(), columns = small_map(), logits = small_map(), grad = small_map();
  std::optional<Tensor> made;
  if (!product) made = small_map();
  float* transposed = scratch.floats(padded(t.c) * t.m);
  kernels().pack({dense(weight, scratch), 1, t.c, t.c, t.m, nullptr, nullptr, transposed});
  const int64_t groups = t.groups();
  const DfcBackward b{t,
                      Map(grad_out),
                      Map(grad_x),
                      made ? made->data<float>() : const_cast<float*>(dense(*product, scratch)),
                      rows.data<float>(),
                      columns.data<float>(),
                      logits.data<float>(),
                      grad.data<float>(),
                      NormGradient(t.norm, t.m, groups, scratch),
                      NormGradient(t.row_norm, t.m, groups, scratch),
                      NormGradient(t.column_norm, t.m, groups, scratch),
                      scratch.zeros(groups * t.row.taps * sum_floats(t.m)),
                      scratch.zeros(groups * t.column.taps * sum_floats(t.m)),
                      scratch.zeros(groups * t.c * padded(t.m)),
                      transposed};
  const auto f = [&](int64_t n) { return scratch.zeros(n); };
  float *none = f(t.m), *gamma_grad = f(t.m), *beta_grad = f(t.m), *row_gamma_grad = f(t.m), *row_beta_grad = f(t.m);
  float *column_gamma_grad = f(t.m), *column_beta_grad = f(t.m);
  make_maps(b, !product);
  column_norm_sums(b);
  b.column_norm.finish(t.m, t.values(), column_gamma_grad, column_beta_grad, none);
  column_gradients(b);
  b.row_norm.finish(t.m, t.values(), row_gamma_grad, row_beta_grad, none);
  row_gradients(b);
  b.norm.finish(t.m, t.values(), gamma_grad, beta_grad, none);
  product_gradients(b);

  const float* weight_grad = transposed_sums(b.grad_weight, groups, t.c, t.m, scratch);
  const auto axis_grad = [&](const float* parts, int64_t taps) {
    const std::vector<double> all = combine(parts, groups, taps * sum_floats(t.m), taps * sum_floats(t.m));
    float* out = f(t.m * taps);
    for (int64_t j = 0; j < t.m; j++)
      for (int64_t i = 0; i < taps; i++) {
        const double* sum = &all[i * sum_floats(t.m) + j];
        out[j * taps + i] = static_cast<float>(sum[0] - sum[padded(t.m)]);
      }
    return out;
  };
  const abi::DType dtype = x.dtype();
  return {std::move(grad_x),
          result(weight_grad, {t.m, t.c, 1, 1}, weight.dtype()),
          given(gamma, gamma_grad, t.m, dtype),
          given(beta, beta_grad, t.m, dtype),
          result(axis_grad(b.grad_row, t.row.taps), {t.m, 1, 1, t.row.taps}, row_weight.dtype()),
          given(row_gamma, row_gamma_grad, t.m, dtype),
          given(row_beta, row_beta_grad, t.m, dtype),
          result(axis_grad(b.grad_column, t.column.taps), {t.m, 1, t.column.taps, 1}, column_weight.dtype()),
          given(column_gamma, column_gamma_grad, t.m, dtype),
          given(column_beta, column_beta_grad, t.m, dtype)};
}

GHOST_OPERATOR(dfc_gate_train_backward);

}  // namespace ghost
