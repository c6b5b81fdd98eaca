// squeeze_excite: the mean of each map, two small products, and one pass that scales. Backward alike.
#include "checks.h"
#include "gates.h"
#include "halves.h"
#include "maps.h"
#include "operator.h"

namespace ghost {
namespace {

bool act_known(int64_t act) { return act >= 0 && act < kActs && slope_kind(act) == kNoSlope; }

struct Weights {
  const float *reduce, *reduce_bias, *expand, *expand_bias;
  int64_t c, r;
};

Weights weights(const Checks& check, int64_t c, const Tensor& reduce, const Optional& reduce_bias, const Tensor& expand,
                const Optional& expand_bias, int64_t act, int64_t gate, Scratch& scratch) {
  check.shape("reduce_weight", reduce, {-1, c});
  const int64_t r = reduce.size(0);
  check.shape("reduce_bias", reduce_bias, {r});
  check.shape("expand_weight", expand, {c, r});
  check.shape("expand_bias", expand_bias, {c});
  check.that(act_known(act), "act", "the code of an activation without slopes", act);
  check.that(gate >= 0 && gate < kGates, "gate", "a gate's code", gate);
  return {
      dense(reduce, scratch), dense(reduce_bias, scratch), dense(expand, scratch), dense(expand_bias, scratch), c, r};
}

/// Bands of rows of every image, in parallel: body(unit, image, first row, row past the last). `unit` counts them in
/// order, and there are n * bands(map) of them, whatever the number of threads.
constexpr int64_t kBandPixels = 1024;
int64_t band_rows(const Map& m) { return std::max<int64_t>(1, std::min(m.h, kBandPixels / std::max<int64_t>(m.w, 1))); }
int64_t bands(const Map& m) { return (m.h + band_rows(m) - 1) / band_rows(m); }

template <class Body>
void for_bands(const Map& m, const Body& body) {
  constexpr int64_t kSerialFloats = 1 << 15;
  const int64_t count = bands(m), rows = band_rows(m), units = m.n * count;
  const int64_t grain = std::max<int64_t>(1, kSerialFloats / std::max<int64_t>(1, rows * m.w * m.c));
  abi::parallel_for(units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) body(u, u / count, u % count * rows, std::min(m.h, (u % count + 1) * rows));
  });
}

/// Rows of a band that are worked on at once. Where a pixel's channels are together few: the kernels pass over them a
/// vector of channels at a time, in first-level cache. Else the whole band, whose planes are read as far as they go.
int64_t rows_at_once(const Map& m) {
  constexpr int64_t kFloats = 1 << 13;
  if (m.channel != 1) return band_rows(m);
  return std::max<int64_t>(1, std::min(band_rows(m), kFloats / std::max<int64_t>(1, m.w * m.c)));
}

/// Per image and channel the sum over all pixels of x, or of x times y, from those of the bands.
void reduce_maps(const Map& x, const Map* y, float* sums) {
  Scratch scratch;
  const int64_t count = bands(x), size = sum_floats(x.c);
  const int64_t step = y ? std::max(rows_at_once(x), rows_at_once(*y)) : rows_at_once(x);
  float* parts = scratch.zeros(x.n * count * size);
  for_bands(x, [&](int64_t unit, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    float *x_rows = own.floats(rows_scratch(x, step)), *y_rows = own.floats(y ? rows_scratch(*y, step) : 0);
    for (int64_t row = begin; row < end; row += step) {
      const int64_t rows = std::min(step, end - row), pixels = rows * x.w;
      const Rows a = read_rows(x, image, row, rows, x_rows);
      if (!y) {
        kernels().sum(a.data, a.pixel, pixels, x.c, parts + unit * size);
        continue;
      }
      const Rows b = read_rows(*y, image, row, rows, y_rows);
      kernels().sum_product(a.data, a.pixel, b.data, b.pixel, pixels, x.c, parts + unit * size);
    }
  });
  for (int64_t i = 0; i < x.n; i++)
    for (int64_t c = 0; c < x.c; c++) {
      double total = 0;
      for (int64_t b = 0; b < count; b++) total += sum_of(parts + (i * count + b) * size + c, x.c);
      sums[i * x.c + c] = static_cast<float>(total);
    }
}

/// out = x * scale + shift, one scale and shift per image and channel, each image's `pad` apart; shift may be null.
void scale_maps(const Map& x, const float* scale, const float* shift, int64_t pad, const Map& out) {
  const int64_t step = std::max(rows_at_once(x), rows_at_once(out));
  for_bands(x, [&](int64_t, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    float *x_rows = own.floats(rows_scratch(x, step)), *out_rows = own.floats(rows_scratch(out, step));
    for (int64_t row = begin; row < end; row += step) {
      const int64_t rows = std::min(step, end - row);
      const Rows from = rows_of(x, image, row, rows, x_rows, 0, x.c);
      const Rows to = rows_to_write(out, image, row, out_rows);
      kernels().scale_rows(from.data, from.pixel, scale + image * pad, shift ? shift + image * pad : nullptr, to.data,
                           to.pixel, rows * x.w, x.c);
      finish_rows(out, image, row, rows, to);
    }
  });
}

/// Shares of a product's columns, whole panels each, on several threads where it is worth it: body(first, count).
template <class Body>
void for_columns(int64_t rows, int64_t k, int64_t columns, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kSerialFlops / std::max<int64_t>(1, 2 * rows * k * kPanel));
  abi::parallel_for(padded(columns) / kPanel, grain, [&](int64_t begin, int64_t end) {
    body(begin * kPanel, std::min(columns, end * kPanel) - begin * kPanel);
  });
}

/// Y = X W^T + bias: a layer of all images, W of columns x k. Few images are multiplied one by one, as packing W would
/// cost more.
void layer(const float* x, int64_t images, int64_t k, const float* w, int64_t columns, const float* bias, float* y,
           int64_t y_row) {
  constexpr int64_t kFew = 4;
  if (images < kFew) {
    for (int64_t i = 0; i < images; i++)
      for_columns(1, k, columns, [&](int64_t c0, int64_t count) {
        kernels().matvec(w + c0 * k, count, k, x + i * k, bias ? bias + c0 : nullptr, y + i * y_row + c0);
      });
    return;
  }
  Scratch scratch;
  float* panels = scratch.floats(panel_floats(columns, k));
  const float* padded_bias = bias ? padded_copy(bias, columns, scratch) : nullptr;
  for_columns(images, k, columns, [&](int64_t c0, int64_t count) {
    float* mine = panels + c0 * k;
    kernels().pack({w + c0 * k, k, 1, count, k, nullptr, nullptr, mine});
    kernels().gemm({x, k, 1, images, k, count, mine, 0, bias ? padded_bias + c0 : nullptr, y + c0, y_row,
                    count % 8 == 0, false, false});
  });
}

/// Y = X W, the backward of a layer: X of images x rows, its rows x_row apart, W of rows x columns.
void layer_backward(const float* x, int64_t x_row, int64_t images, const float* w, int64_t rows, int64_t columns,
                    float* y, int64_t y_row) {
  Scratch scratch;
  if (columns % 8 != 0) {  // the kernel reads whole vectors of W
    float* wide = scratch.floats(rows * by_eight(columns));
    for (int64_t r = 0; r < rows; r++) std::copy_n(w + r * columns, columns, wide + r * by_eight(columns));
    w = wide;
  }
  for_columns(images, rows, columns, [&](int64_t c0, int64_t count) {
    kernels().gemm(
        {x, x_row, 1, images, rows, count, w + c0, by_eight(columns), nullptr, y + c0, y_row, true, false, false});
  });
}

/// What an excitation is made of, image by image: the hidden layer before and after act, the logits, the gate's values,
/// whose rows are gate_row apart. `active` may be `hidden`, and `gates` `logits`, where the earlier values are not
/// wanted.
void excitation(const Weights& w, int64_t images, int64_t act, int64_t gate, const float* squeeze, float* hidden,
                float* active, float* logits, float* gates, int64_t gate_row) {
  layer(squeeze, images, w.c, w.reduce, w.r, w.reduce_bias, hidden, w.r);
  for (int64_t i = 0; i < images * w.r; i++) active[i] = act_of(act, hidden[i]);
  layer(active, images, w.r, w.expand, w.c, w.expand_bias, logits, w.c);
  for (int64_t i = 0; i < images; i++)
    for (int64_t c = 0; c < w.c; c++) gates[i * gate_row + c] = gate_of(gate, logits[i * w.c + c]);
}

/// C[rows][n] = sum over k images of A[k][rows] B[k][n], the gradient of a weight; A's, B's and C's rows are padded.
void weight_gradient(const float* a, int64_t rows, int64_t images, const float* b, int64_t n, float* c) {
  for_columns(rows, images, n, [&](int64_t c0, int64_t count) {
    kernels().gemm(
        {a, 1, padded(rows), rows, images, count, b + c0, padded(n), nullptr, c + c0, padded(n), true, false, false});
  });
}

/// A matrix with padded rows made dense, in place.
const float* dense_rows(float* w, int64_t rows, int64_t columns) {
  for (int64_t r = 1; r < rows; r++) std::copy_n(w + r * padded(columns), columns, w + r * columns);
  return w;
}

}  // namespace

Results<4> squeeze_excite(const Tensor& x, const Tensor& w3, const Optional& b3, const Tensor& w4, const Optional& b4,
                          int64_t act, int64_t gate) {
  if (!all_readable(x, w3, b3, w4, b4) || x.numel() == 0)
    return abi::call<Results<4>>("ghost_ops::squeeze_excite_reference", "", x, w3, b3, w4, b4, act, gate);
  Scratch scratch;
  const Checks check("squeeze_excite");
  check.map("x", x);
  const Weights w = weights(check, x.size(1), w3, b3, w4, b4, act, gate, scratch);
  const abi::DType dtype = x.dtype();
  Tensor out = new_map({x.size(0), w.c, x.size(2), x.size(3)}, x);
  const Map from(x), to(out);
  const int64_t n = from.n, pad = padded(w.c);
  float *squeeze = scratch.floats(n * w.c), *hidden = scratch.floats(n * w.r), *active = scratch.floats(n * w.r);
  float *logits = scratch.floats(n * w.c), *scale = scratch.zeros(n * pad);
  reduce_maps(from, nullptr, squeeze);
  for (int64_t i = 0; i < n * w.c; i++) squeeze[i] /= static_cast<float>(from.h * from.w);
  excitation(w, n, act, gate, squeeze, hidden, active, logits, scale, pad);
  scale_maps(from, scale, nullptr, pad, to);
  return {std::move(out), result(squeeze, {n, w.c}, dtype), result(hidden, {n, w.r}, dtype),
          result(logits, {n, w.c}, dtype)};
}

GHOST_OPERATOR(squeeze_excite);

Tensor excite(const Tensor& squeeze, const Tensor& w3, const Optional& b3, const Tensor& w4, const Optional& b4,
              int64_t act, int64_t gate) {
  if (!all_readable(squeeze, w3, b3, w4, b4) || squeeze.numel() == 0)
    return abi::call<Tensor>("ghost_ops::excite_reference", "", squeeze, w3, b3, w4, b4, act, gate);
  Scratch scratch;
  const Checks check("excite");
  check.shape("squeeze", squeeze, {-1, -1});
  const int64_t n = squeeze.size(0);
  const Weights w = weights(check, squeeze.size(1), w3, b3, w4, b4, act, gate, scratch);
  float *hidden = scratch.floats(n * w.r), *values = scratch.floats(n * w.c);
  excitation(w, n, act, gate, dense(squeeze, scratch), hidden, hidden, values, values, w.c);
  return result(values, {n, w.c}, squeeze.dtype());
}

GHOST_OPERATOR(excite);

Results<5> squeeze_excite_backward(const Tensor& grad_out, const Tensor& x, const Tensor& squeeze, const Tensor& hidden,
                                   const Tensor& logits, const Tensor& w3, const Optional& b3, const Tensor& w4,
                                   const Optional& b4, int64_t act, int64_t gate) {
  if (!all_readable(grad_out, x, squeeze, hidden, logits, w3, b3, w4, b4) || x.numel() == 0)
    return abi::call<Results<5>>("ghost_ops::squeeze_excite_backward_reference", "", grad_out, x, squeeze, hidden,
                                 logits, w3, b3, w4, b4, act, gate);
  Scratch scratch;
  const Checks check("squeeze_excite_backward");
  check.map("x", x);
  const Weights w = weights(check, x.size(1), w3, b3, w4, b4, act, gate, scratch);
  const int64_t n = x.size(0), pad = padded(w.c);
  check.shape("grad_out", grad_out, {n, w.c, x.size(2), x.size(3)});
  check.shape("squeeze", squeeze, {n, w.c});
  check.shape("hidden", hidden, {n, w.r});
  check.shape("logits", logits, {n, w.c});
  const abi::DType dtype = x.dtype();
  Tensor grad_x = new_map({n, w.c, x.size(2), x.size(3)}, x);
  const Map grad(grad_out), from(x), to(grad_x);
  const float *s = dense(squeeze, scratch), *h = dense(hidden, scratch), *v = dense(logits, scratch);

  // N x C and N x R: gradients of the logits and of the hidden layer, and what the weights' gradients multiply
  const int64_t hidden_pad = padded(w.r);
  float *grad_logits = scratch.zeros(n * pad), *grad_hidden = scratch.zeros(n * hidden_pad);
  float *active = scratch.zeros(n * hidden_pad), *means = scratch.zeros(n * pad);
  float *scale = scratch.zeros(n * pad), *shift = scratch.zeros(n * pad), *sums = scratch.floats(n * w.c);
  reduce_maps(grad, &from, sums);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t c = 0; c < w.c; c++) {
      const float logit = v[i * w.c + c];
      grad_logits[i * pad + c] = gate_backward(gate, sums[i * w.c + c], logit);
      scale[i * pad + c] = gate_of(gate, logit);
      means[i * pad + c] = s[i * w.c + c];
    }
    for (int64_t r = 0; r < w.r; r++) active[i * hidden_pad + r] = act_of(act, h[i * w.r + r]);
  }
  layer_backward(grad_logits, pad, n, w.expand, w.c, w.r, grad_hidden, hidden_pad);
  for (int64_t i = 0; i < n; i++)
    for (int64_t r = 0; r < w.r; r++) {
      float& g = grad_hidden[i * hidden_pad + r];
      g = act_backward(act, g, h[i * w.r + r]);
    }
  layer_backward(grad_hidden, hidden_pad, n, w.reduce, w.r, w.c, shift, pad);
  for (int64_t i = 0; i < n * pad; i++) shift[i] /= static_cast<float>(from.h * from.w);
  float *grad_w3 = scratch.floats(w.r * pad), *grad_w4 = scratch.floats(w.c * hidden_pad);
  weight_gradient(grad_hidden, w.r, n, means, w.c, grad_w3);
  weight_gradient(grad_logits, w.c, n, active, w.r, grad_w4);
  scale_maps(grad, scale, shift, pad, to);
  const auto bias = [&](const Optional& b, const float* g, int64_t row, int64_t count) {
    if (!b) return abi::empty({0}, dtype);
    float* total = scratch.floats(count);
    for (int64_t c = 0; c < count; c++) {
      double t = 0;
      for (int64_t i = 0; i < n; i++) t += g[i * row + c];
      total[c] = static_cast<float>(t);
    }
    return result(total, {count}, b->dtype());
  };
  return {std::move(grad_x), result(dense_rows(grad_w3, w.r, w.c), {w.r, w.c}, w3.dtype()),
          bias(b3, grad_hidden, hidden_pad, w.r), result(dense_rows(grad_w4, w.c, w.r), {w.c, w.r}, w4.dtype()),
          bias(b4, grad_logits, pad, w.c)};
}

GHOST_OPERATOR(squeeze_excite_backward);

}  // namespace ghost
