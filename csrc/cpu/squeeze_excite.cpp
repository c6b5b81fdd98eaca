// squeeze_excite: the mean of each map, two small products, and one pass that scales. Backward alike.
#include <cmath>

#include "checks.h"
#include "maps.h"
#include "operators.h"

namespace ghost {
namespace {

enum Gate : int64_t { kClamp, kHardSigmoid, kSigmoid, kIdentity, kGates };

float sigmoid(float v) { return 1.f / (1.f + std::exp(-v)); }

// Bounds are written so that NaN passes, as in PyTorch.
float clip(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

float gate_of(int64_t gate, float v) {
  switch (gate) {
    case kClamp:
      return clip(v, 0.f, 1.f);
    case kHardSigmoid:
      return clip(v + 3.f, 0.f, 6.f) / 6.f;
    case kSigmoid:
      return sigmoid(v);
    default:
      return v;
  }
}

float gate_backward(int64_t gate, float grad, float v) {
  switch (gate) {
    case kClamp:
      return v >= 0.f && v <= 1.f ? grad : 0.f;
    case kHardSigmoid:
      return v > -3.f && v < 3.f ? grad / 6.f : 0.f;
    case kSigmoid:
      return grad * (sigmoid(v) * (1.f - sigmoid(v)));
    default:
      return grad;
  }
}

float act_of(int64_t act, float v) {
  switch (act) {
    case kRelu:
      return v < 0.f ? 0.f : v;
    case kRelu6:
      return clip(v, 0.f, 6.f);
    case kSilu:
      return v * sigmoid(v);
    case kHardSwish:
      return v * clip(v + 3.f, 0.f, 6.f) / 6.f;
    default:
      return v;
  }
}

float act_backward(int64_t act, float grad, float v) {
  switch (act) {
    case kRelu:
      return v <= 0.f ? 0.f : grad;
    case kRelu6:
      return v <= 0.f || v >= 6.f ? 0.f : grad;
    case kSilu:
      return grad * (sigmoid(v) * (1.f + v * (1.f - sigmoid(v))));
    case kHardSwish:
      return v <= -3.f ? 0.f : v < 3.f ? grad * (v / 3.f + 0.5f) : grad;
    default:
      return grad;
  }
}

bool act_known(int64_t act) { return act >= 0 && act < kActs && act != kPrelu && act != kLeakyRelu; }

struct Weights {
  const float *reduce, *reduce_bias, *expand, *expand_bias;
  int64_t c, r;
};

Weights weights(const Checks& check, const Tensor& x, const Tensor& reduce, const Optional& reduce_bias,
                const Tensor& expand, const Optional& expand_bias, int64_t act, int64_t gate, Scratch& scratch) {
  check.map("x", x);
  const int64_t c = x.size(1);
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
/// order, and there are units(map) of them, whatever the number of threads.
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

/// Per image and channel the sum over all pixels of x, or of x times y, from those of the bands.
void reduce_maps(const Map& x, const Map* y, float* sums) {
  Scratch scratch;
  const int64_t count = bands(x), size = sum_floats(x.c), most = band_rows(x);
  float* parts = scratch.zeros(x.n * count * size);
  for_bands(x, [&](int64_t unit, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const int64_t rows = end - begin, pixels = rows * x.w;
    const Rows a = read_rows(x, image, begin, rows, own.floats(rows_scratch(x, most)));
    if (!y) return kernels().sum(a.data, a.pixel, pixels, x.c, parts + unit * size);
    const Rows b = read_rows(*y, image, begin, rows, own.floats(rows_scratch(*y, most)));
    kernels().sum_product(a.data, a.pixel, b.data, b.pixel, pixels, x.c, parts + unit * size);
  });
  for (int64_t i = 0; i < x.n; i++)
    for (int64_t c = 0; c < x.c; c++) {
      double total = 0;
      for (int64_t b = 0; b < count; b++) total += parts[(i * count + b) * size + c];
      sums[i * x.c + c] = static_cast<float>(total);
    }
}

/// out = x * scale + shift, one scale and shift per image and channel, each image's `pad` apart; shift may be null.
void scale_maps(const Map& x, const float* scale, const float* shift, int64_t pad, const Map& out) {
  for_bands(x, [&](int64_t, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const int64_t rows = end - begin;
    const Rows from = read_rows(x, image, begin, rows, own.floats(rows_scratch(x, rows)));
    const Rows to = rows_to_write(out, image, begin, own.floats(rows_scratch(out, rows)));
    kernels().affine(from.data, from.pixel,
                     {scale + image * pad, shift ? shift + image * pad : nullptr, kNone, nullptr}, to.data, to.pixel,
                     rows * x.w, x.c);
    finish_rows(out, image, begin, rows, to);
  });
}

}  // namespace

Four squeeze_excite(const Tensor& x, const Tensor& w3, const Optional& b3, const Tensor& w4, const Optional& b4,
                    int64_t act, int64_t gate) {
  if (!all_readable(x, w3, b3, w4, b4) || x.numel() == 0)
    return abi::call<Four>("ghost_ops::squeeze_excite_reference", "", x, w3, b3, w4, b4, act, gate);
  Scratch scratch;
  const Weights w = weights(Checks("squeeze_excite"), x, w3, b3, w4, b4, act, gate, scratch);
  const abi::DType dtype = x.dtype();
  Tensor out = abi::empty({x.size(0), w.c, x.size(2), x.size(3)}, dtype, layout_of(x));
  const Map from(x), to(out);
  const int64_t n = from.n, pad = padded(w.c);
  float *squeeze = scratch.floats(n * w.c), *hidden = scratch.floats(n * w.r), *active = scratch.floats(w.r);
  float *logits = scratch.floats(n * w.c), *scale = scratch.zeros(n * pad);
  reduce_maps(from, nullptr, squeeze);
  for (int64_t i = 0; i < n; i++) {
    for (int64_t c = 0; c < w.c; c++) squeeze[i * w.c + c] /= static_cast<float>(from.h * from.w);
    kernels().matvec(w.reduce, w.r, w.c, squeeze + i * w.c, w.reduce_bias, hidden + i * w.r);
    for (int64_t r = 0; r < w.r; r++) active[r] = act_of(act, hidden[i * w.r + r]);
    kernels().matvec(w.expand, w.c, w.r, active, w.expand_bias, logits + i * w.c);
    for (int64_t c = 0; c < w.c; c++) scale[i * pad + c] = gate_of(gate, logits[i * w.c + c]);
  }
  scale_maps(from, scale, nullptr, pad, to);
  return {std::move(out), result(squeeze, {n, w.c}, dtype), result(hidden, {n, w.r}, dtype),
          result(logits, {n, w.c}, dtype)};
}

Five squeeze_excite_backward(const Tensor& grad_out, const Tensor& x, const Tensor& squeeze, const Tensor& hidden,
                             const Tensor& logits, const Tensor& w3, const Optional& b3, const Tensor& w4,
                             const Optional& b4, int64_t act, int64_t gate) {
  if (!all_readable(grad_out, x, squeeze, hidden, logits, w3, b3, w4, b4) || x.numel() == 0)
    return abi::call<Five>("ghost_ops::squeeze_excite_backward_reference", "", grad_out, x, squeeze, hidden, logits, w3,
                           b3, w4, b4, act, gate);
  Scratch scratch;
  const Checks check("squeeze_excite_backward");
  const Weights w = weights(check, x, w3, b3, w4, b4, act, gate, scratch);
  const int64_t n = x.size(0), pad = padded(w.c);
  check.shape("grad_out", grad_out, {n, w.c, x.size(2), x.size(3)});
  check.shape("squeeze", squeeze, {n, w.c});
  check.shape("hidden", hidden, {n, w.r});
  check.shape("logits", logits, {n, w.c});
  const abi::DType dtype = x.dtype();
  Tensor grad_x = abi::empty({n, w.c, x.size(2), x.size(3)}, dtype, layout_of(x));
  const Map grad(grad_out), from(x), to(grad_x);
  const float *s = dense(squeeze, scratch), *h = dense(hidden, scratch), *v = dense(logits, scratch);

  float *grad_gate = scratch.floats(n * w.c), *scale = scratch.zeros(n * pad), *shift = scratch.zeros(n * pad);
  float *grad_hidden = scratch.floats(w.r), *active = scratch.floats(w.r);
  float *grad_w3 = scratch.zeros(w.r * w.c), *grad_b3 = scratch.zeros(w.r);
  float *grad_w4 = scratch.zeros(w.c * w.r), *grad_b4 = scratch.zeros(w.c);
  reduce_maps(grad, &from, grad_gate);
  for (int64_t i = 0; i < n; i++) {
    std::fill_n(grad_hidden, w.r, 0.f);
    for (int64_t r = 0; r < w.r; r++) active[r] = act_of(act, h[i * w.r + r]);
    for (int64_t c = 0; c < w.c; c++) {
      const float g = gate_backward(gate, grad_gate[i * w.c + c], v[i * w.c + c]);
      grad_b4[c] += g;
      for (int64_t r = 0; r < w.r; r++) {
        grad_hidden[r] += g * w.expand[c * w.r + r];
        grad_w4[c * w.r + r] += g * active[r];
      }
      scale[i * pad + c] = gate_of(gate, v[i * w.c + c]);
    }
    for (int64_t r = 0; r < w.r; r++) {
      const float g = act_backward(act, grad_hidden[r], h[i * w.r + r]);
      grad_b3[r] += g;
      for (int64_t c = 0; c < w.c; c++) {
        shift[i * pad + c] += g * w.reduce[r * w.c + c];
        grad_w3[r * w.c + c] += g * s[i * w.c + c];
      }
    }
    for (int64_t c = 0; c < w.c; c++) shift[i * pad + c] /= static_cast<float>(from.h * from.w);
  }
  scale_maps(grad, scale, shift, pad, to);
  const auto bias = [&](const Optional& b, const float* g, int64_t count) {
    return b ? result(g, {count}, b->dtype()) : abi::empty({0}, dtype);
  };
  return {std::move(grad_x), result(grad_w3, {w.r, w.c}, w3.dtype()), bias(b3, grad_b3, w.r),
          result(grad_w4, {w.c, w.r}, w4.dtype()), bias(b4, grad_b4, w.c)};
}

}  // namespace ghost
