#include "single_pass.h"

namespace ghost {
namespace {

/// One band of rows of one image.
class Band {
 public:
  Band(const SinglePass& p, int64_t image, const float* panels, float* squeeze, Scratch& scratch)
      : p_(p), k_(kernels()), image_(image), panels_(panels), squeeze_(squeeze), scratch_(scratch) {}

  void make_rows(int64_t begin, int64_t end) {
    const int64_t h = p_.out.h, w = p_.out.w, halo = p_.cheap.halo();
    const int64_t top = std::max<int64_t>(0, begin - halo), bottom = std::min(h, end + halo);
    step_ = step_rows(w, bottom - top);
    y1_ = RowRing(top, step_, 2 * halo, h, w, by_eight(p_.m), scratch_);
    if (p_.cheap.expands()) expanded_ = RowRing(top, step_, 2 * halo, h, w, by_eight(p_.cheap.channels), scratch_);
    const int64_t most = step_ + 2 * halo;  // rows of output that one step may release
    x_rows_ = scratch_.floats(rows_scratch(p_.x, step_));
    out_rows_ = scratch_.floats(rows_scratch(p_.out, most));
    if (p_.residual) residual_rows_ = scratch_.floats(rows_scratch(*p_.residual, most));

    int64_t written = begin;
    for (int64_t y = top; y < bottom;) {
      const int64_t count = std::min(step_, bottom - y);
      make_y1(y, count);
      y += count;
      const int64_t ready = y == bottom ? end : std::min(end, y - halo);
      if (ready > written) {
        write(written, ready - written);
        written = ready;
      }
    }
  }

 private:
  void make_y1(int64_t y, int64_t count) {
    const int64_t w = p_.out.w, pixel = by_eight(p_.m), pixels = count * w;
    const Rows x = rows_of(p_.x, image_, y, count, x_rows_, 0, p_.x.c);
    Ahead ahead = next_rows(p_.x, image_, y, count);
    float* to = y1_.row(y);
    if (panels_) {
      const Affine act{nullptr, nullptr, p_.act, p_.slope};
      k_.gemm({x.data, x.pixel, 1, pixels, p_.x.c, p_.m, panels_, 0, p_.bias, to, pixel, true, p_.act == kRelu, false,
               nullptr, 0, &ahead});
      if (p_.act != kNone && p_.act != kRelu) k_.affine(to, pixel, act, to, pixel, pixels, p_.m);
    } else {
      k_.affine(x.data, x.pixel, {p_.primary_scale, p_.bias, p_.act, p_.slope}, to, pixel, pixels, p_.m);
    }
    if (p_.cheap.expands())
      expand_channels(to, pixel, expanded_.row(y), by_eight(p_.cheap.channels), pixels, p_.cheap.channels,
                      p_.cheap.multiplier);
  }

  void write(int64_t y, int64_t count) {
    const int64_t w = p_.out.w, pixels = count * w, oup = p_.out.c;
    const Rows out = rows_to_write(p_.out, image_, y, out_rows_);
    const Affine copy{nullptr, nullptr, kNone, nullptr};
    for (int64_t i = 0; i < count; i++)
      k_.affine(y1_.row(y + i), by_eight(p_.m), copy, out.data + i * w * out.pixel, out.pixel, w, p_.m);
    if (p_.cheap.channels) {
      const Cheap& d = p_.cheap;
      const RowRing& ring = d.expands() ? expanded_ : y1_;
      const float* rows[kMostRows];
      float* y2 = out.data + p_.m;
      for (int64_t i = 0; i < count; i += kMostRows - 8) {
        const int64_t some = std::min<int64_t>(count - i, kMostRows - 8);
        ring.window(y + i, some, d.halo(), rows);
        k_.depthwise({rows, by_eight(d.expands() ? d.channels : p_.m), some, w, d.channels, d.kernel, d.weight,
                      d.weight_row, d.bias, y2 + i * w * out.pixel, w * out.pixel, out.pixel, p_.cheap_act == kRelu});
      }
      if (p_.cheap_act != kNone && p_.cheap_act != kRelu)
        k_.affine(y2, out.pixel, {nullptr, nullptr, p_.cheap_act, p_.cheap_slope}, y2, out.pixel, pixels, d.channels);
    }
    if (p_.residual) {
      const Rows r = read_rows(*p_.residual, image_, y, count, residual_rows_);
      k_.add(r.data, r.pixel, out.data, out.pixel, out.data, out.pixel, pixels, oup);
    }
    if (squeeze_) k_.sum(out.data, out.pixel, pixels, oup, squeeze_);
    finish_rows(p_.out, image_, y, count, out);
  }

  static constexpr int64_t kMostRows = 64;
  const SinglePass& p_;
  const Kernels& k_;
  int64_t image_;
  const float* panels_;
  float* squeeze_;
  Scratch& scratch_;
  int64_t step_ = 1;
  RowRing y1_, expanded_;
  float *x_rows_ = nullptr, *out_rows_ = nullptr, *residual_rows_ = nullptr;
};

/// The packed primary weight, with one image's excitation folded in where there is one.
const float* pack_primary(const SinglePass& p, const float* excitation, Scratch& scratch) {
  if (!p.primary) return nullptr;
  float* out = scratch.floats(padded(p.m) * p.x.c);
  kernels().pack({p.primary, p.x.c, 1, p.m, p.x.c, p.primary_scale, excitation, out});
  return out;
}

}  // namespace

void run_single_pass(const SinglePass& p) {
  const int64_t n = p.out.n, h = p.out.h, w = p.out.w;
  const int64_t taps = p.cheap.kernel * p.cheap.kernel;
  const int64_t flops = 2 * n * h * w * ((p.primary ? p.x.c * p.m : 0) + taps * p.cheap.channels);
  const int64_t threads = flops < kSerialFlops ? 1 : abi::num_threads();
  const int64_t bands = bands_for(n, h, threads), units = n * bands;
  Scratch scratch;
  float* sums = p.squeeze ? scratch.zeros(units * sum_floats(p.out.c)) : nullptr;
  const bool excited = p.primary && p.input_scale;
  const float* shared = excited ? nullptr : pack_primary(p, nullptr, scratch);
  abi::parallel_for(units, threads > 1 ? 1 : units, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
      Scratch own;
      const int64_t image = u / bands, band = u % bands;
      const float* panels = excited ? pack_primary(p, p.input_scale + image * p.x.c, own) : shared;
      Band(p, image, panels, sums ? sums + u * sum_floats(p.out.c) : nullptr, own)
          .make_rows(h * band / bands, h * (band + 1) / bands);
    }
  });
  if (!p.squeeze) return;
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < p.out.c; c++) {
      double total = 0;
      for (int64_t b = 0; b < bands; b++) total += sum_of(sums + (i * bands + b) * sum_floats(p.out.c) + c, p.out.c);
      p.squeeze[i * p.out.c + c] = static_cast<float>(total / static_cast<double>(h * w));
    }
}

}  // namespace ghost
