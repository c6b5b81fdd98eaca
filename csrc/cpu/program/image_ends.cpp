// What an image's way through a program begins and ends with, and the excitation: all but Ghost modules and depthwise
// convolutions.
#include "cpu/gates.h"
#include "image.h"

namespace ghost {

void Image::load(int64_t step, const Part& p) {
  const Value& v = values_[step];
  if (!v.is_padded) return;
  k_.gather({x_.at(image_, p.row0), x_.bf16, x_.channel, x_.row, x_.pixel}, p.row1 - p.row0, x_.w, x_.c, v.row(p.row0),
            v.w * v.pixel, v.pixel);
}

void Image::store(int64_t share) {
  const int64_t step = program_.steps.back().in;
  if (bound_ == step) return;
  const Value& v = values_[step];
  const int64_t row0 = v.h * share / plan_.shares, row1 = v.h * (share + 1) / plan_.shares;
  const auto half = [&](int64_t at, int64_t channel, int64_t channels) {
    if (channels == 0) return;
    k_.scatter(v.row(row0) + at, v.w * v.pixel, v.pixel, row1 - row0, v.w, channels,
               {out_->at(image_, row0, channel), out_->bf16, out_->channel, out_->row, out_->pixel});
  };
  half(0, 0, v.channels.first);
  half(v.second_at, v.channels.first, v.channels.second);
}

/// A dense convolution as products. Rows of the image are copied, padded, a few at a time, as NHWC: the taps of a row
/// are a run of columns.
void Image::conv(int64_t step, const Part& p, int64_t share) {
  const Step& t = program_.steps[step];
  const Value& out = values_[step];
  const Sized& s = plan_.steps[step];
  const Pieces at = pieces(t);
  const float* packed = packed_ + t.packed;
  const int64_t channels = t.channels, row = (s.in_w + 2 * t.padding) * channels;
  float* rows = shared_ + m_.rows + share * m_.rows_of_share;
  Run runs[kMostRuns];
  for (int64_t i = 0; i < t.kernel; i++) runs[i] = {i * row, t.kernel * channels};
  for (int64_t y = p.row0; y < p.row1; y += kConvRows) {
    const int64_t count = std::min(kConvRows, p.row1 - y);
    const int64_t top = y * t.stride - t.padding, end = top + (count - 1) * t.stride + t.kernel;
    const int64_t first = std::max<int64_t>(top, 0), last = std::max(first, std::min(end, s.in_h));
    std::fill(rows, rows + (end - top) * row, 0.f);
    k_.gather({x_.at(image_, first), x_.bf16, x_.channel, x_.row, x_.pixel}, last - first, s.in_w, channels,
              rows + (first - top) * row + t.padding * channels, row, channels);
    for (int64_t i = 0; i < count; i++)
      product(t, {rows + i * t.stride * row, t.stride * channels, 1, s.w, t.kernel * t.kernel * channels, t.primary,
                  packed + at.weight, 0, packed + at.bias, out.row(y + i), out.pixel, true, t.first.act == kRelu, false,
                  runs, t.kernel});
    activate(t.first, packed + at.slopes, out.row(y), out.pixel, count * s.w, out.pixel);
  }
}

/// A share of the columns of a product with its activation, a row an image.
void Image::product_rows(const Step& t, const float* a, int64_t k, int64_t n, const float* panels, const float* bias,
                         const Conv& c, const float* slopes, float* out, int64_t share, int64_t images) const {
  const auto [c0, c1] = columns_of(n, share, plan_.shares);
  if (c0 >= c1) return;
  const int64_t row = m_.own_floats;
  product(t, {a, row, 1, images, k, c1 - c0, panels + c0 * t.depth(k), 0, bias + c0, out + c0, row, true,
              c.act == kRelu, false});
  activate(c, slopes + c0, out + c0, row, images, c1 - c0);
}

/// The same for one image, of a layer whose weight is not packed.
void Image::layer(const float* a, int64_t k, int64_t n, const float* weight, const float* bias, const Conv& c,
                  const float* slopes, float* out, int64_t share) const {
  const auto [c0, c1] = columns_of(n, share, plan_.shares);
  if (c0 >= c1) return;
  k_.matvec(weight + c0 * k, c1 - c0, k, a, bias + c0, out + c0);
  k_.affine(out + c0, 0, {nullptr, nullptr, c.act, slopes + c0}, out + c0, 0, 1, c1 - c0);
}

void Image::excite(const Step& t, int64_t phase, int64_t share, int64_t images) {
  const Pieces at = pieces(t);
  const float* packed = packed_ + t.packed;
  float *mean = own_ + m_.mean, *hidden = own_ + m_.hidden, *gate = own_ + m_.gate;
  const bool alone = plan_.shares == 1;
  if (t.raw) {
    const RawLayers& raw = raw_[&t - program_.steps.data()];
    if (alone || phase == 0)
      layer(mean, t.channels, t.hidden, raw.reduce, packed + at.bias, t.first, packed + at.slopes, hidden, share);
    if (alone || phase == 1)
      layer(hidden, t.hidden, t.channels, raw.expand, packed + at.second_bias, t.second, packed + at.second_slopes,
            gate, share);
  } else {
    if (alone || phase == 0)
      product_rows(t, mean, t.channels, t.hidden, packed + at.weight, packed + at.bias, t.first, packed + at.slopes,
                   hidden, share, images);
    if (alone || phase == 1)
      product_rows(t, hidden, t.hidden, t.channels, packed + at.second_weight, packed + at.second_bias, t.second,
                   packed + at.second_slopes, gate, share, images);
  }
  if (!alone && phase == 0) return;
  const auto [c0, c1] = columns_of(t.channels, share, plan_.shares);
  for (int64_t i = 0; i < images; i++)
    for (int64_t c = c0; c < c1; c++) {
      float& g = gate[i * m_.own_floats + c];
      g = gate_of(t.gate, g);
    }
}

}  // namespace ghost
