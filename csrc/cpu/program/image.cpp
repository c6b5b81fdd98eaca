#include "image.h"

#include "cpu/gates.h"
#include "cpu/halves.h"

namespace ghost {
namespace {

constexpr int64_t kMostRows = 64;  // pointers to rows at a time

/// Columns for share i of `shares`, whole panels each.
std::pair<int64_t, int64_t> columns_of(int64_t n, int64_t i, int64_t shares) {
  const int64_t panels = padded(n) / kPanel;
  return {std::min(n, panels * i / shares * kPanel), std::min(n, panels * (i + 1) / shares * kPanel)};
}

}  // namespace

Image::Image(const Program& p, const Plan& plan, const float* packed, const Map& x, const Map* out, float* features,
             int64_t features_row, float* memory)
    : program_(p),
      plan_(plan),
      m_(plan.workspace),
      k_(kernels()),
      packed_(packed),
      x_(x),
      out_(out),
      features_(features),
      features_row_(features_row),
      memory_(memory),
      values_(p.steps.size()) {
  std::fill(memory_ + m_.zeros, memory_ + m_.mean, 0.f);
  for (size_t i = 0; i < p.steps.size(); i++) {
    const Step& t = p.steps[i];
    const Sized& s = plan.steps[i];
    if (t.out >= 0)
      values_[i] = {memory_ + m_.slots[t.out], s.h, s.w, t.out_channels.pixel(), t.out_channels.second_at(),
                    t.out_channels, true};
  }
  if (!out_ || !out_->direct) return;
  // The last Ghost module writes into the caller's map itself, if whole vectors of its y1 may be read there.
  const Step& last = p.steps[p.steps.back().in];
  if (last.kind == Kind::ghost && (!last.made || last.residual >= 0 || padded(last.primary) <= out_->pixel))
    bound_ = p.steps.back().in;
}

void Image::begin(int64_t image) {
  image_ = image;
  const Step& first = program_.steps[0];
  if (first.kind == Kind::load && x_.direct && (!first.by_lanes || x_.c % 8 == 0)) {  // read where it lies
    Value& v = values_[0];
    v.data = reinterpret_cast<float*>(x_.at(image, 0)), v.pixel = x_.pixel, v.is_padded = false;
  }
  if (bound_ >= 0) {
    Value& v = values_[bound_];
    v.data = reinterpret_cast<float*>(out_->at(image, 0)), v.pixel = out_->pixel;
    v.second_at = v.channels.first, v.is_padded = false;
  }
}

void Image::run_alone(int64_t image) {
  begin(image);
  for (size_t i = 0; i < program_.steps.size(); i++) run(static_cast<int64_t>(i), 0, 0);
}

void Image::run(int64_t step, int64_t phase, int64_t share) {
  const Step& t = program_.steps[step];
  switch (t.kind) {
    case Kind::load:
      return load(step, share);
    case Kind::conv:
      return conv(t, step, share);
    case Kind::ghost:
      return ghost(t, step, phase, share);
    case Kind::depthwise:
      return depthwise(t, step, phase, share);
    case Kind::excite:
      return excite(t, phase, share);
    case Kind::pool:
      if (share == 0) std::copy_n(memory_ + m_.mean, t.channels, features_ + image_ * features_row_);
      return;
    case Kind::store:
      return store(share);
    case Kind::dense:
      return;  // of all images together
  }
}

Image::Part Image::part(int64_t step, int64_t share) const {
  const Step& t = program_.steps[step];
  const Sized& s = plan_.steps[step];
  const int64_t columns = t.kind == Kind::depthwise ? t.in_channels.pixel() : t.primary;
  if (s.cut == Cut::columns && plan_.shares > 1) {
    const auto [c0, c1] = columns_of(columns, share, plan_.shares);
    return {0, s.h, c0, c1};
  }
  return {s.h * share / plan_.shares, s.h * (share + 1) / plan_.shares, 0, columns};
}

void Image::load(int64_t step, int64_t share) {
  const Value& v = values_[step];
  if (!v.is_padded) return;
  const Part p = part(step, share);
  k_.gather({x_.at(image_, p.row0), x_.bf16, x_.channel, x_.row, x_.pixel}, p.row1 - p.row0, x_.w, x_.c,
            v.row(p.row0), v.w * v.pixel, v.pixel);
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

void Image::activate(const Conv& c, const float* slopes, float* data, int64_t pixel, int64_t pixels,
                     int64_t channels) const {
  if (c.act == kNone || c.act == kRelu) return;  // a ReLU is in the kernels
  k_.affine(data, pixel, {nullptr, nullptr, c.act, slopes}, data, pixel, pixels, channels);
}

/// A dense convolution as products over rows of the image that lie, padded, one behind the other: the taps of one of
/// the kernel's rows are one run of columns.
void Image::conv(const Step& t, int64_t step, int64_t share) {
  const Value& out = values_[step];
  const Sized& s = plan_.steps[step];
  const Part p = part(step, share);
  const Pieces at = pieces(t);
  const float* packed = packed_ + t.packed;
  const int64_t channels = t.channels, row = (s.in_w + 2 * t.padding) * channels;
  float* rows = memory_ + m_.rows + share * m_.rows_of_share;
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
      k_.pointwise({rows + i * t.stride * row, t.stride * channels, 1, s.w, t.kernel * t.kernel * channels, t.primary,
                    packed + at.weight, 0, packed + at.bias, out.row(y + i), out.pixel, true, t.first.act == kRelu,
                    false, runs, t.kernel});
    activate(t.first, packed + at.slopes, out.row(y), out.pixel, count * s.w, out.pixel);
  }
}

/// The cheap operation's channels that go with a part.
Image::Part Image::kept(const Step& t, const Part& p) const {
  if (t.multiplier() > 1) return {p.row0, p.row1, 0, t.kept()};
  return {p.row0, p.row1, std::min(p.c0, t.kept()), std::min(p.c1, t.kept())};
}

/// A part's rows, in order: y1 a few rows at a time, and then the rows whose neighbours are there. With rows shared out,
/// those at a border wait for the neighbouring share: they are finished in a second phase.
void Image::ghost(const Step& t, int64_t step, int64_t phase, int64_t share) {
  const Value& out = values_[step];
  const Part p = part(step, share);
  const int64_t phases = plan_.steps[step].phases, halo = t.made ? t.kernel / 2 : 0;
  Value y1 = out;
  if (t.residual >= 0) y1.data = memory_ + m_.z, y1.pixel = by_eight(t.primary), y1.is_padded = true;
  float* sums = t.squeeze ? sums_of(share) : nullptr;
  const int64_t from = phases == 1 || p.row0 == 0 ? p.row0 : p.row0 + halo;
  const int64_t to = phases == 1 || p.row1 == out.h ? p.row1 : p.row1 - halo;
  if (phase == 0) {
    if (sums) std::fill(sums, sums + m_.sums_of_share, 0.f);
    const int64_t height = step_rows(out.w, p.row1 - p.row0);
    int64_t finished = from;
    for (int64_t y = p.row0; y < p.row1;) {
      const int64_t count = std::min(height, p.row1 - y);
      make_y1(t, y1, y, count, p);
      y += count;
      const int64_t ready = y == p.row1 ? to : std::min(to, y - halo);
      if (ready <= finished) continue;
      finish(t, y1, out, finished, ready - finished, p, sums);
      finished = ready;
    }
  } else if (phase == 1 && from < to) {
    finish(t, y1, out, p.row0, from - p.row0, p, sums);
    finish(t, y1, out, to, p.row1 - to, p, sums);
  } else if (phase == 1) {
    finish(t, y1, out, p.row0, p.row1 - p.row0, p, sums);
  }
  if (!sums || phase < phases - 1 || (phases > 1 && share > 0)) return;
  const Part k = kept(t, p);
  float* mean = memory_ + m_.mean;
  const int64_t shares = phases > 1 ? plan_.shares : 1;
  means(sums, shares, p.c1 - p.c0, out, mean + p.c0);
  means(sums + m_.half_sums, shares, k.c1 - k.c0, out, mean + t.primary + k.c0);
}

/// Sums of channels over the pixels of `of`, from those of some shares, to means.
void Image::means(const float* sums, int64_t shares, int64_t channels, const Value& of, float* mean) const {
  for (int64_t c = 0; c < channels; c++) {
    double total = 0;
    for (int64_t i = 0; i < shares; i++) total += sum_of(sums + i * m_.sums_of_share + c, channels);
    mean[c] = static_cast<float>(total / static_cast<double>(of.h * of.w));
  }
}

void Image::make_y1(const Step& t, const Value& y1, int64_t y, int64_t count, const Part& p) {
  const Value& x = values_[t.in];
  const Pieces at = pieces(t);
  const float *packed = packed_ + t.packed, *panels = t.scaled ? memory_ + m_.scaled : packed + at.weight;
  const Run runs[] = {{0, x.channels.first}, {x.second_at, x.channels.second}};
  const int64_t pixels = count * y1.w, run_count = x.channels.second ? 2 : 1;
  float* to = y1.row(y) + p.c0;
  // Past its last channel y1 may run into y2 of the same pixel, which is written later; unless by another share.
  const bool room = y1.is_padded || p.c1 % 8 == 0 || (t.made && p.c1 - p.c0 == t.primary);
  k_.pointwise({x.row(y), x.pixel, 1, pixels, t.channels, p.c1 - p.c0, panels + p.c0 * t.channels, 0,
                packed + at.bias + p.c0, to, y1.pixel, room, t.first.act == kRelu, false, runs, run_count});
  activate(t.first, packed + at.slopes + p.c0, to, y1.pixel, pixels, y1.width_of(p.c1 - p.c0));
  if (t.multiplier() > 1)
    expand_channels(to, y1.pixel, memory_ + m_.expanded + y * y1.w * by_eight(t.kept()), by_eight(t.kept()), pixels,
                    t.kept(), t.multiplier());
}

void Image::finish(const Step& t, const Value& y1, const Value& out, int64_t y, int64_t count, const Part& p,
                   float* sums) {
  if (count <= 0) return;
  const Pieces at = pieces(t);
  const float* packed = packed_ + t.packed;
  const Part k = kept(t, p);
  const int64_t pixels = count * out.w, channels = k.c1 - k.c0;
  float *first = out.row(y) + p.c0, *second = out.row(y) + out.second_at + k.c0;
  if (channels > 0) {
    const bool expands = t.multiplier() > 1;
    const int64_t in_pixel = expands ? by_eight(t.kept()) : y1.pixel, halo = t.kernel / 2;
    const float* from = (expands ? memory_ + m_.expanded : y1.data) + k.c0;
    const float* rows[kMostRows];
    for (int64_t i = 0, some; i < count; i += some) {
      some = std::min<int64_t>(count - i, kMostRows - 2 * halo);
      for (int64_t r = 0; r < some + 2 * halo; r++) {
        const int64_t at_row = y + i + r - halo;
        rows[r] = at_row < 0 || at_row >= out.h ? memory_ + m_.zeros : from + at_row * out.w * in_pixel;
      }
      k_.depthwise({rows, in_pixel, some, out.w, out.width_of(channels), t.kernel, packed + at.second_weight + k.c0,
                    padded(t.kept()), packed + at.second_bias + k.c0, second + i * out.w * out.pixel, out.w * out.pixel,
                    out.pixel, t.second.act == kRelu});
    }
    activate(t.second, packed + at.second_slopes + k.c0, second, out.pixel, pixels, out.width_of(channels));
  }
  if (t.residual >= 0) {
    const Value& residual = values_[t.residual];
    add_residual(residual, y1.row(y) + p.c0, y1.pixel, first, out, y, count, p.c0, p.c1 - p.c0);
    add_residual(residual, second, out.pixel, second, out, y, count, t.primary + k.c0, channels);
  }
  if (!sums) return;
  k_.sum(first, out.pixel, pixels, p.c1 - p.c0, sums);
  if (channels > 0) k_.sum(second, out.pixel, pixels, channels, sums + m_.half_sums);
}

/// to = from + the residual's channels from `channel` on, whichever of its halves they lie in.
void Image::add_residual(const Value& residual, const float* from, int64_t from_pixel, float* to, const Value& out,
                         int64_t y, int64_t count, int64_t channel, int64_t channels) {
  const int64_t border = residual.channels.first, end = channel + channels, pixels = count * out.w;
  const auto piece = [&](int64_t begin, int64_t end, int64_t shift) {
    if (begin >= end) return;
    const int64_t i = begin - channel;
    k_.add(residual.row(y) + begin + shift, residual.pixel, from + i, from_pixel, to + i, out.pixel, pixels,
           end - begin);
  };
  piece(channel, std::min(end, border), 0);
  piece(std::max(channel, border), end, residual.second_at - border);
}

void Image::depthwise(const Step& t, int64_t step, int64_t phase, int64_t share) {
  const Value &in = values_[t.in], &out = values_[step];
  const Part p = part(step, share);
  const int64_t phases = plan_.steps[step].phases, channels = p.c1 - p.c0;
  float* sums = t.squeeze ? sums_of(share) : nullptr;
  if (phase == 0 && channels > 0) {
    if (sums) std::fill(sums, sums + m_.sums_of_share, 0.f);
    const Pieces at = pieces(t);
    const float* packed = packed_ + t.packed;
    const int64_t row = padded(t.in_channels.pixel());
    const float* rows[kMostRows];
    for (int64_t y = p.row0, some; y < p.row1; y += some) {
      some = std::min(p.row1 - y, std::max<int64_t>(1, step_rows(out.w, p.row1 - p.row0)));
      some = std::min(some, (kMostRows - t.kernel) / t.stride + 1);
      for (int64_t r = 0; r < (some - 1) * t.stride + t.kernel; r++) {
        const int64_t at_row = y * t.stride + r - t.kernel / 2;
        rows[r] = at_row < 0 || at_row >= in.h ? memory_ + m_.zeros : in.row(at_row) + p.c0;
      }
      float* to = out.row(y) + p.c0;
      k_.depthwise({rows, in.pixel, some, out.w, channels, t.kernel, packed + at.weight + p.c0, row,
                    packed + at.bias + p.c0, to, out.w * out.pixel, out.pixel, t.first.act == kRelu, t.stride, in.w});
      activate(t.first, packed + at.slopes + p.c0, to, out.pixel, some * out.w, channels);
      if (sums) k_.sum(to, out.pixel, some * out.w, channels, sums);
    }
  }
  if (!sums || phase < phases - 1 || (phases > 1 && share > 0) || channels <= 0) return;
  // a lane to a channel: those between the halves are none
  const auto half = [&](int64_t lane, int64_t count, int64_t channel) {
    const int64_t begin = std::max(lane, p.c0), end = std::min(lane + count, p.c1);
    float* mean = memory_ + m_.mean + channel + begin - lane;
    const int64_t shares = phases > 1 ? plan_.shares : 1;
    for (int64_t c = begin; c < end; c++, mean++) {
      double total = 0;
      for (int64_t i = 0; i < shares; i++) total += sum_of(sums + i * m_.sums_of_share + c - p.c0, channels);
      *mean = static_cast<float>(total / static_cast<double>(out.h * out.w));
    }
  };
  half(0, out.channels.first, 0);
  half(out.second_at, out.channels.second, out.channels.first);
}

/// Part of one row of a product with its activation.
void Image::product_row(const float* a, int64_t k, int64_t n, const float* panels, const float* bias, const Conv& c,
                        const float* slopes, float* out, int64_t share) const {
  const auto [c0, c1] = columns_of(n, share, plan_.shares);
  if (c0 >= c1) return;
  k_.pointwise({a, k, 1, 1, k, c1 - c0, panels + c0 * k, 0, bias + c0, out + c0, c1 - c0, true, c.act == kRelu, false});
  activate(c, slopes + c0, out + c0, c1 - c0, 1, c1 - c0);
}

void Image::excite(const Step& t, int64_t phase, int64_t share) {
  const Pieces at = pieces(t);
  const float* packed = packed_ + t.packed;
  float *mean = memory_ + m_.mean, *hidden = memory_ + m_.hidden, *gate = memory_ + m_.gate;
  const bool alone = plan_.shares == 1;
  if (alone || phase == 0)
    product_row(mean, t.channels, t.hidden, packed + at.weight, packed + at.bias, t.first, packed + at.slopes, hidden,
                share);
  if (alone || phase == 1) {
    product_row(hidden, t.hidden, t.channels, packed + at.second_weight, packed + at.second_bias, t.second,
                packed + at.second_slopes, gate, share);
    const auto [c0, c1] = columns_of(t.channels, share, plan_.shares);
    for (int64_t c = c0; c < c1; c++) gate[c] = gate_of(t.gate, gate[c]);
  }
  if (alone || phase == 2) {  // into the weights of the Ghost module that it is for
    const Step* next = &t + 1;
    while (!next->scaled) next++;
    const auto [c0, c1] = columns_of(next->primary, share, plan_.shares);
    if (c0 < c1)
      k_.scale_panels(packed_ + next->packed + c0 * next->channels, gate, next->channels, c1 - c0,
                      memory_ + m_.scaled + c0 * next->channels);
  }
}

}  // namespace ghost
