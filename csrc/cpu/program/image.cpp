#include "image.h"

#include "cpu/halves.h"

namespace ghost {
namespace {

constexpr int64_t kAheadFloats = 1 << 18;  // how far ahead weights are fetched

}  // namespace

Image::Image(const Program& p, const Plan& plan, const float* packed, const std::vector<RawLayers>& raw, const Map& x,
             const Map* out, float* features, int64_t features_row, float* shared, float* own)
    : program_(p),
      plan_(plan),
      m_(plan.workspace),
      k_(kernels()),
      packed_(packed),
      raw_(raw),
      x_(x),
      out_(out),
      features_(features),
      features_row_(features_row),
      shared_(shared),
      own_(own),
      values_(p.steps.size()),
      ahead_(plan.shares) {
  std::fill_n(shared_ + m_.zeros, m_.zero_floats, 0.f);
  for (size_t i = 0; i < p.steps.size(); i++) {
    const Step& t = p.steps[i];
    const Sized& s = plan.steps[i];
    if (t.out >= 0)
      values_[i] = {(plan.own[i] ? own_ : shared_) + m_.values[i],
                    s.h,
                    s.w,
                    t.out_channels.pixel(),
                    t.out_channels.second_at(),
                    t.out_channels,
                    true,
                    s.out};
  }
  if (!out_ || !out_->direct) return;
  // The last Ghost module writes into the caller's map itself, if whole vectors of its y1 may be read there.
  const Step& last = p.steps[p.steps.back().in];
  if (last.kind == Kind::ghost && (!last.made || last.residual >= 0 || padded(last.primary) <= out_->pixel))
    bound_ = p.steps.back().in;
}

void Image::begin(int64_t image) {
  image_ = image;
  std::fill(ahead_.begin(), ahead_.end(), Ahead{});
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

/// The work of a walk through an image's steps by one thread.
class Image::Maker {
 public:
  explicit Maker(Image& image) : image_(image), progress_(image.program_.steps.size()) {}

  /// Steps whose rows are made in turn, or one that is none of a map.
  void run(int64_t begin, int64_t end) {
    if (of(begin).out < 0) return image_.run(begin, 0, 0);
    advance_run(image_.program_, image_.plan_.steps, progress_, begin, end, *this);
  }

  /// Rows of one step's output, and of those before it only what they are made of.
  void run_rows(int64_t end, int64_t row0, int64_t row1) {
    progress_ = walk_of_rows(image_.program_, image_.plan_.steps, end, row0, row1);
    advance(image_.program_, image_.plan_.steps, progress_, end - 1, row1, *this);
  }

  void start(int64_t step) {
    const Step& t = of(step);
    if (t.squeeze) std::fill_n(image_.sums_of(0), image_.m_.sums_of_share, 0.f);
    if (t.scales()) image_.scale(t, image_.part(step, 0));
  }
  void end(int64_t step) {
    if (of(step).squeeze) image_.squeeze(of(step), step, image_.part(step, 0), 0, 1);
  }
  void load(int64_t step) { image_.load(step, image_.part(step, 0)); }
  void rows(int64_t step, int64_t y, int64_t count) {
    const Step& t = of(step);
    if (t.kind == Kind::conv)
      image_.conv(step, {y, y + count, 0, t.primary}, 0);
    else
      image_.depthwise_rows(t, step, y, count, image_.part(step, 0), sums(t));
  }
  void product(int64_t step, int64_t y, int64_t count) {
    image_.make_y1(of(step), image_.y1_of(step), y, count, image_.part(step, 0), 0);
  }
  void finish(int64_t step, int64_t y, int64_t count) {
    const Step& t = of(step);
    image_.finish(t, image_.y1_of(step), image_.values_[step], y, count, image_.part(step, 0), sums(t));
  }

 private:
  Image& image_;
  std::vector<Progress> progress_;

  const Step& of(int64_t step) const { return image_.program_.steps[step]; }
  float* sums(const Step& t) const { return t.squeeze ? image_.sums_of(0) : nullptr; }
};

/// One image after the other up to the small maps, a few rows of several steps in turn while they are in cache; from
/// there on step by step, so that weights which outweigh the maps are read once for all images.
void Image::run_alone(std::vector<Image>& images) {
  for (Image& image : images) image.alone_ = images.size() == 1;
  const Plan& plan = images[0].plan_;
  const Program& program = images[0].program_;
  std::vector<Maker> makers(images.begin(), images.end());
  for (Maker& maker : makers) {
    int64_t step = 0;
    for (int64_t end : plan.ends) {
      maker.run(step, end);
      step = end;
    }
  }
  for (int64_t step = plan.late; step < static_cast<int64_t>(plan.steps.size()); step++) {
    if (program.steps[step].kind == Kind::excite)
      images[0].excite(program.steps[step], 0, 0, static_cast<int64_t>(images.size()));
    else
      for (Maker& maker : makers) maker.run(step, step + 1);
  }
}

void Image::run_band(const Image& whole, int64_t share) {
  const int64_t end = whole.plan_.end_of_bands, shares = whole.plan_.shares;
  image_ = whole.image_;
  std::fill(ahead_.begin(), ahead_.end(), Ahead{});
  values_[end - 1] = whole.values_[end - 1];
  const int64_t h = values_[end - 1].h;
  Maker(*this).run_rows(end, h * share / shares, h * (share + 1) / shares);
}

void Image::run(int64_t step, int64_t phase, int64_t share) {
  const Step& t = program_.steps[step];
  switch (t.kind) {
    case Kind::load:
      return load(step, part(step, share));
    case Kind::conv:
      return conv(step, part(step, share), share);
    case Kind::ghost:
      return ghost(t, step, phase, share);
    case Kind::depthwise:
      return depthwise(t, step, phase, share);
    case Kind::excite:
      return excite(t, phase, share, 1);
    case Kind::pool:
      if (share == 0) std::copy_n(own_ + m_.mean, t.channels, features_ + image_ * features_row_);
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

void Image::activate(const Conv& c, const float* slopes, float* data, int64_t pixel, int64_t pixels,
                     int64_t channels) const {
  if (c.act == kNone || c.act == kRelu) return;  // a ReLU is in the kernels
  k_.affine(data, pixel, {nullptr, nullptr, c.act, slopes}, data, pixel, pixels, channels);
}

/// The cheap operation's channels that go with a part.
Image::Part Image::kept(const Step& t, const Part& p) const {
  if (t.multiplier() > 1) return {p.row0, p.row1, 0, t.kept()};
  return {p.row0, p.row1, std::min(p.c0, t.kept()), std::min(p.c1, t.kept())};
}

/// Where y1 goes: into the output, unless something is added to that.
Value Image::y1_of(int64_t step) const {
  const Step& t = program_.steps[step];
  Value y1 = values_[step];
  if (t.residual < 0) return y1;
  y1.data = shared_ + m_.y1[step], y1.pixel = by_eight(t.primary), y1.is_padded = true;
  y1.ring = plan_.steps[step].y1;
  return y1;
}

/// The excitation into the weights of the Ghost module that it is for.
void Image::scale(const Step& t, const Part& p) {
  if (p.c0 < p.c1)
    k_.scale_panels(packed_ + t.packed + p.c0 * t.channels, own_ + m_.gate, t.channels, p.c1 - p.c0,
                    shared_ + m_.scaled + p.c0 * t.channels);
}

/// One share of a Ghost module. With rows shared out, those at a border between shares are finished in a second phase,
/// when the neighbour's y1 is there, and the squeeze is put together in a third.
void Image::ghost(const Step& t, int64_t step, int64_t phase, int64_t share) {
  const Value &out = values_[step], y1 = y1_of(step);
  const Part p = part(step, share);
  if (t.scales() && phase == 0) {
    const auto [c0, c1] = columns_of(t.primary, share, plan_.shares);
    return scale(t, {0, 0, c0, c1});
  }
  phase -= t.scales();
  const bool columns = plan_.steps[step].cut == Cut::columns;
  const int64_t halo = columns ? 0 : halo_of(t);
  const int64_t from = p.row0 == 0 ? 0 : p.row0 + halo, to = p.row1 == out.h ? out.h : p.row1 - halo;
  float* sums = t.squeeze ? sums_of(share) : nullptr;
  if (phase == 0) {
    if (sums) std::fill(sums, sums + m_.sums_of_share, 0.f);
    const int64_t height = step_rows(out.w, p.row1 - p.row0), behind = halo_of(t);
    int64_t finished = from;
    for (int64_t y = p.row0; y < p.row1;) {
      const int64_t count = std::min(height, p.row1 - y);
      make_y1(t, y1, y, count, p, share);
      y += count;
      const int64_t ready = y == p.row1 ? to : std::min(to, y - behind);
      if (ready <= finished) continue;
      finish(t, y1, out, finished, ready - finished, p, sums);
      finished = ready;
    }
    if (sums && columns) squeeze(t, step, p, share, 1);
  } else if (phase == 1 && from < to) {
    finish(t, y1, out, p.row0, from - p.row0, p, sums);
    finish(t, y1, out, to, p.row1 - to, p, sums);
  } else if (phase == 1) {
    finish(t, y1, out, p.row0, p.row1 - p.row0, p, sums);
  } else if (share == 0) {
    squeeze(t, step, p, 0, plan_.shares);
  }
}

/// The means of a part's channels, in the order of the channels, from the sums of some shares.
void Image::squeeze(const Step& t, int64_t step, const Part& p, int64_t share, int64_t shares) {
  const Value& out = values_[step];
  float *mean = own_ + m_.mean, *sums = sums_of(share);
  if (t.kind == Kind::ghost) {
    const Part k = kept(t, p);
    means(sums, shares, p.c1 - p.c0, p.c1 - p.c0, out, mean + p.c0);
    means(sums + m_.half_sums, shares, k.c1 - k.c0, k.c1 - k.c0, out, mean + t.primary + k.c0);
    return;
  }
  // depthwise: sums of lanes, and those between the halves are no channels
  const int64_t lanes = p.c1 - p.c0, first = out.channels.first;
  const auto half = [&](int64_t lane, int64_t count, int64_t channel) {
    const int64_t begin = std::max(lane, p.c0), end = std::min(lane + count, p.c1);
    means(sums + begin - p.c0, shares, end - begin, lanes, out, mean + channel + begin - lane);
  };
  half(0, first, 0);
  half(out.second_at, out.channels.second, first);
}

/// Means over the pixels of `of` of some channels, from the sums of some shares, which are sums of `all` channels.
void Image::means(const float* sums, int64_t shares, int64_t channels, int64_t all, const Value& of,
                  float* mean) const {
  for (int64_t c = 0; c < channels; c++) {
    double total = 0;
    for (int64_t i = 0; i < shares; i++) total += sum_of(sums + i * m_.sums_of_share + c, all);
    mean[c] = static_cast<float>(total / static_cast<double>(of.h * of.w));
  }
}

/// What products fetch on the way: the rows of the caller's map that come next, or else the weights after a step's, as
/// at batch 1 all of a net's come from memory: half a line a column.
Ahead* Image::ahead_of(const Step& t, int64_t y, int64_t count, int64_t share) {
  Ahead& a = ahead_[share];
  const Value& x = values_[t.in];
  if (!x.is_padded) {
    const int64_t row = x.w * x.pixel, end = std::min(x.h, y + 2 * count);
    a = {reinterpret_cast<const char*>(x.data + (y + count) * row), reinterpret_cast<const char*>(x.data + end * row),
         kRowsAhead};
    return &a;
  }
  const float *here = packed_ + t.packed + pieces(t).end, *end = packed_ + program_.packed_floats;
  const char* from = reinterpret_cast<const char*>(here) + 64 * share;
  if (!alone_) return nullptr;  // others under way use the same weights
  if (a.at < from) a.at = from;
  a.end = reinterpret_cast<const char*>(std::min(end, here + kAheadFloats));
  a.step = (t.pairs ? 16 : 32) * plan_.shares;
  return &a;
}

void Image::make_y1(const Step& t, const Value& y1, int64_t y, int64_t count, const Part& p, int64_t share) {
  const Value& x = values_[t.in];
  const Pieces at = pieces(t);
  const float *packed = packed_ + t.packed, *panels = t.scales() ? shared_ + m_.scaled : packed + at.weight;
  const Run runs[] = {{0, x.channels.first}, {x.second_at, x.channels.second}};
  const int64_t pixels = count * y1.w, run_count = x.channels.second ? 2 : 1;
  float* to = y1.row(y) + p.c0;
  // Past its last channel y1 may run into y2 of the same pixel, which is written later; unless by another share.
  const bool room = y1.is_padded || p.c1 % 8 == 0 || (t.made && p.c1 - p.c0 == t.primary);
  product(t, {x.row(y), x.pixel, 1, pixels, t.channels, p.c1 - p.c0, panels + p.c0 * t.depth(t.channels), 0,
              packed + at.bias + p.c0, to, y1.pixel, room, t.first.act == kRelu, false, runs, run_count,
              ahead_of(t, y, count, share), t.scaled && t.pairs ? own_ + m_.gate : nullptr});
  activate(t.first, packed + at.slopes + p.c0, to, y1.pixel, pixels, y1.width_of(p.c1 - p.c0));
  if (t.multiplier() > 1)
    expand_channels(to, y1.pixel, shared_ + m_.expanded + y * y1.w * by_eight(t.kept()), by_eight(t.kept()), pixels,
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
    const float* rows[kMostRows];
    for (int64_t i = 0, some; i < count; i += some) {
      some = std::min<int64_t>(count - i, kMostRows - 2 * halo);
      for (int64_t r = 0; r < some + 2 * halo; r++) {
        const int64_t at_row = y + i + r - halo;
        if (at_row < 0 || at_row >= out.h)
          rows[r] = shared_ + m_.zeros;
        else
          rows[r] = (expands ? shared_ + m_.expanded + at_row * out.w * in_pixel : y1.row(at_row)) + k.c0;
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

void Image::depthwise_rows(const Step& t, int64_t step, int64_t y, int64_t count, const Part& p, float* sums) {
  const Value &in = values_[t.in], &out = values_[step];
  const Pieces at = pieces(t);
  const float* packed = packed_ + t.packed + p.c0;
  const int64_t channels = p.c1 - p.c0;
  const float* rows[kMostRows];
  for (int64_t r = 0; r < (count - 1) * t.stride + t.kernel; r++) {
    const int64_t from = y * t.stride + r - t.kernel / 2;
    rows[r] = from < 0 || from >= in.h ? shared_ + m_.zeros : in.row(from) + p.c0;
  }
  float* to = out.row(y) + p.c0;
  k_.depthwise({rows, in.pixel, count, out.w, channels, t.kernel, packed + at.weight, padded(t.in_channels.pixel()),
                packed + at.bias, to, out.w * out.pixel, out.pixel, t.first.act == kRelu, t.stride, in.w});
  activate(t.first, packed + at.slopes, to, out.pixel, count * out.w, channels);
  if (sums) k_.sum(to, out.pixel, count * out.w, channels, sums);
}

void Image::depthwise(const Step& t, int64_t step, int64_t phase, int64_t share) {
  const Part p = part(step, share);
  float* sums = t.squeeze ? sums_of(share) : nullptr;
  const bool columns = plan_.steps[step].cut == Cut::columns;
  if (phase == 0) {
    if (sums) std::fill(sums, sums + m_.sums_of_share, 0.f);
    if (p.c0 < p.c1)
      for (int64_t y = p.row0, count; y < p.row1; y += count) {
        count = std::min(rows_at_once(t, plan_.steps[step]), p.row1 - y);
        depthwise_rows(t, step, y, count, p, sums);
      }
    if (sums && columns) squeeze(t, step, p, share, 1);
  } else if (share == 0) {
    squeeze(t, step, p, 0, plan_.shares);
  }
}

}  // namespace ghost
