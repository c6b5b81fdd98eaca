// dfc_gate_train_backward: from the gate to x, a pass for each BatchNorm's sums. The maps between the convolutions are
// computed again from the product, and that too, from x, where it was not kept.
#include "dfc_gate.h"
#include "operator.h"

namespace ghost {
namespace {

struct DfcBackward {
  DfcContext t;
  Map grad_out, grad_x;
  float *product, *of_rows, *of_columns, *grad;  // [values x m]; the last is the gradient of a normalised map
  NormGradient norm, row_norm, column_norm;
  float *grad_row, *grad_column, *grad_weight;  // per group: [taps] sums, [taps] sums, [c x padded(m)]
  const float* transposed;                      // packed weight for the gradient of the pooled x

  float* row_of(int64_t group) const { return grad_row + group * t.row.taps * sum_floats(t.m); }
  float* column_of(int64_t group) const { return grad_column + group * t.column.taps * sum_floats(t.m); }
  float* weight_of(int64_t group) const { return grad_weight + group * t.c * padded(t.m); }
};

/// The maps between the convolutions, up to the one that the row convolution makes.
void make_maps(const DfcBackward& b, bool make_product) {
  b.t.for_rows([&](int64_t, int64_t row, int64_t count) {
    Scratch own;
    if (make_product) b.t.product(DfcContext::PooledRows(b.t, own).make(row, count), row, count, b.product);
    b.t.convolve_rows(b.product, DfcContext::PaddedRows(b.t, own), row, count, b.of_rows);
  });
}

void column_norm_sums(const DfcBackward& b) {
  const DfcContext& t = b.t;
  t.for_images([&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const RowRing ring = t.column_ring(begin, own);
    float* grad_rows = own.floats(rows_scratch(b.grad_out, t.step()));
    int64_t next = std::max<int64_t>(0, begin - t.column.halo());
    for (int64_t y = begin; y < end; y += t.step()) {
      const int64_t count = std::min(t.step(), end - y);
      t.normalise(b.of_rows, t.row_norm, image, next, y + count + t.column.halo(), ring);
      const Rows z = t.at(b.of_columns, image * t.h + y);
      t.convolve_columns(ring, t.column.weight, y, count, z);
      const Rows g = rows_of(b.grad_out, image, y, count, grad_rows, 0, t.m);
      b.column_norm.add_sums(group, b.column_norm.call(count * t.w, t.m, z, g));
    }
  });
}

/// Through the column convolution: its weight's gradient, and the sums of the BatchNorm before it.
void column_gradients(const DfcBackward& b) {
  const DfcContext& t = b.t;
  const int64_t halo = t.column.halo(), pixel = by_eight(t.m);
  t.for_images([&](int64_t group, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const RowRing values = t.column_ring(begin, own), grads = t.column_ring(begin, own);
    float* grad_rows = own.floats(rows_scratch(b.grad_out, 1));
    std::vector<const float*> rows(t.step() + 2 * halo), middle(t.step());
    int64_t next = std::max<int64_t>(0, begin - halo), next_grad = next;
    for (int64_t y = begin; y < end; y += t.step()) {
      const int64_t count = std::min(t.step(), end - y), limit = std::min(t.h, y + count + halo);
      t.normalise(b.of_rows, t.row_norm, image, next, limit, values);
      for (; next_grad < limit; next_grad++) {
        const Rows z = t.at(b.of_columns, image * t.h + next_grad);
        const Rows g = rows_of(b.grad_out, image, next_grad, 1, grad_rows, 0, t.m);
        b.column_norm.write(b.column_norm.call(t.w, t.m, z, g), grads.row(next_grad), pixel);
      }
      const Rows to = t.at(b.grad, image * t.h + y);
      t.convolve_columns(grads, t.column.flipped, y, count, to);
      values.window(y, count, halo, rows.data());
      for (int64_t i = 0; i < count; i++) middle[i] = grads.row(y + i);
      kernels().axis_weight_grad(
          {rows.data(), pixel, 1, 0, count, t.w, t.m, t.column.taps, middle.data(), pixel, b.column_of(group)});
      b.row_norm.add_sums(group, b.row_norm.call(count * t.w, t.m, t.at(b.of_rows, image * t.h + y), to));
    }
  });
}

/// Through the row convolution, likewise. `of_columns` is not needed any more, and takes the gradient.
void row_gradients(const DfcBackward& b) {
  const DfcContext& t = b.t;
  t.for_rows([&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    const DfcContext::PaddedRows values(t, own), grads(t, own);
    const int64_t pixel = grads.pixel();
    for (int64_t i = 0; i < count; i++) {
      kernels().affine(t.at(b.product, row + i).data, t.m, t.norm.affine(), values.row(i), pixel, t.w, t.m);
      b.row_norm.write(b.row_norm.call(t.w, t.m, t.at(b.of_rows, row + i), t.at(b.grad, row + i)), grads.row(i), pixel);
    }
    const Rows to = t.at(b.of_columns, row);
    kernels().axis_conv({grads.starts(), pixel, 0, 1, count, t.w, t.m, t.row.taps, t.row.flipped, padded(t.m), to.data,
                         t.w * to.pixel, to.pixel});
    kernels().axis_weight_grad(
        {values.starts(), pixel, 0, 1, count, t.w, t.m, t.row.taps, grads.rows(), pixel, b.row_of(group)});
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
  t.for_rows([&](int64_t group, int64_t row, int64_t count) {
    Scratch own;
    float *grad = own.floats(t.step() * t.w * pixel), *grad_pooled = own.floats(t.step() * t.w * pooled_pixel);
    const int64_t pixels = count * t.w;
    b.norm.write(b.norm.call(pixels, t.m, t.at(b.product, row), t.at(b.of_columns, row)), grad, pixel);
    const Rows pooled = DfcContext::PooledRows(t, own).make(row, count);
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
  Tensor rows = small_map(), columns = small_map(), grad = small_map();
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

  const std::vector<double> sums = combine(b.grad_weight, groups, t.c * padded(t.m), t.c * padded(t.m));
  float* weight_grad = f(t.m * t.c);
  for (int64_t j = 0; j < t.m; j++)
    for (int64_t c = 0; c < t.c; c++) weight_grad[j * t.c + c] = static_cast<float>(sums[c * padded(t.m) + j]);
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
