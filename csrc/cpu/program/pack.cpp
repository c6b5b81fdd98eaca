#include "pack.h"

#include "cpu/checks.h"
#include "cpu/kernels/bfloat16.h"
#include "cpu/maps.h"

namespace ghost {
namespace {

using abi::Tensor;

class Packer {
 public:
  Packer(const std::vector<Tensor>& parameters, bool pairs, float* packed, Scratch& scratch)
      : parameters_(parameters), pairs_(pairs), packed_(packed), scratch_(scratch) {}

  RawLayers step(const Step& t) {
    const Pieces at = pieces(t);
    float* base = packed_ + t.packed;
    RawLayers raw;
    switch (t.kind) {
      case Kind::conv: {
        const Tensor& w = weight({t.primary, t.channels, t.kernel, t.kernel});
        const float* scale = take(t.first, t.primary, base + at.bias, base + at.slopes);
        const int64_t taps = t.kernel * t.kernel;
        Scratch scratch;
        float* by_tap = scratch.floats(t.primary * taps * t.channels);
        kernels().gather({const_cast<float*>(dense(w, scratch)), false, taps, taps * t.channels, 1}, t.primary, taps,
                         t.channels, by_tap, taps * t.channels, t.channels);
        panels(by_tap, t.primary, taps * t.channels, scale, base + at.weight);
        break;
      }
      case Kind::ghost: {
        product(t.primary, t.channels, t.first, base, at.weight, at.bias, at.slopes);
        if (!t.made) break;
        const Tensor& w = weight({t.made, 1, t.kernel, t.kernel});
        const float* scale = take(t.second, t.made, base + at.second_bias, base + at.second_slopes, t.kept());
        taps(w, t.kernel, scale, {{0, 0, t.kept()}}, padded(t.kept()), base + at.second_weight);
        break;
      }
      case Kind::depthwise: {
        const Channels& c = t.in_channels;
        const Tensor& w = weight({c.count(), 1, t.kernel, t.kernel});
        Scratch scratch;
        float* logical = scratch.zeros(2 * padded(c.count()));
        const float* scale = take(t.first, c.count(), logical, logical + padded(c.count()));
        const Piece both[] = {{0, 0, c.first}, {c.first, c.second_at(), c.second}};
        taps(w, t.kernel, scale, {both[0], both[1]}, padded(c.pixel()), base + at.weight);
        std::fill(base + at.bias, base + at.end, 0.f);
        for (const Piece& p : both) {
          std::copy_n(logical + p.from, p.count, base + at.bias + p.to);
          if (t.first.has_slopes()) std::copy_n(logical + padded(c.count()) + p.from, p.count, base + at.slopes + p.to);
        }
        break;
      }
      case Kind::excite:
        raw.reduce = product(t.hidden, t.channels, t.first, base, at.weight, at.bias, at.slopes, t.raw);
        raw.expand =
            product(t.channels, t.hidden, t.second, base, at.second_weight, at.second_bias, at.second_slopes, t.raw);
        break;
      case Kind::dense:
        product(t.primary, t.channels, t.first, base, at.weight, at.bias, at.slopes);
        break;
      default:
        break;
    }
    return raw;
  }

  void finish() const {
    check_.that(next_ == parameters_.size(), "parameters", std::to_string(next_) + " of them",
                static_cast<int64_t>(parameters_.size()));
  }

 private:
  struct Piece {
    int64_t from, to, count;
  };

  const Tensor& next() {
    check_.that(next_ < parameters_.size(), "parameters", "more of them", static_cast<int64_t>(parameters_.size()));
    const Tensor& t = parameters_[next_++];
    check_.that(readable(t), "parameters", "float32 or bfloat16 tensors on the CPU",
                Checks::text(t.dtype()) + " at index " + std::to_string(next_ - 1));
    return t;
  }
  const Tensor& weight(std::initializer_list<int64_t> sizes) {
    const Tensor& t = next();
    if (t.dim() == 2 && sizes.begin()[2] == 1 && sizes.begin()[3] == 1) {  // a Linear's, for a 1x1 convolution's
      check_.shape("parameters", t, {sizes.begin()[0], sizes.begin()[1]});
    } else {
      check_.shape("parameters", t, sizes);
    }
    return t;
  }
  const float* vector(bool present, int64_t channels) {
    if (!present) return nullptr;
    const Tensor& t = next();
    check_.shape("parameters", t, {channels});
    return dense(t, scratch_);
  }

  /// Bias, BatchNorm and slopes of a convolution of `channels`; the first `kept` of them are written. Returns the
  /// BatchNorm's scale, or null.
  const float* take(const Conv& c, int64_t channels, float* bias, float* slopes, int64_t kept = -1) {
    kept = kept < 0 ? channels : kept;
    const float* own = vector(c.bias, channels);
    const float *gamma = vector(c.gamma, channels), *beta = vector(c.beta, channels);
    const float *mean = vector(c.norm, channels), *var = vector(c.norm, channels);
    std::fill(bias, bias + padded(kept), 0.f);
    if (c.has_slopes()) std::fill(slopes, slopes + padded(kept), 0.f);
    float* scale = nullptr;
    if (c.norm) {
      scale = scratch_.floats(channels);
      float* shift = scratch_.floats(channels);
      kernels().fold({channels, own, gamma, beta, mean, var, c.eps, scale, shift});
      own = shift;
    }
    if (own) std::copy_n(own, kept, bias);
    if (slope_kind(c.act) == kNumber) std::fill_n(slopes, kept, static_cast<float>(c.slope));
    if (c.slopes) {
      const Tensor& t = next();
      check_.that(t.numel() == channels || t.numel() == 1, "parameters", "1 slope or one per channel", t.numel());
      const float* s = dense(t, scratch_);
      for (int64_t i = 0; i < kept; i++) slopes[i] = s[t.numel() == 1 ? 0 : i];
    }
    return scale;
  }

  /// Returns the weight as it is.
  const float* product(int64_t n, int64_t k, const Conv& c, float* base, int64_t w, int64_t b, int64_t s,
                       bool raw = false) {
    const float* from = dense(weight({n, k, 1, 1}), scratch_);
    const float* scale = take(c, n, base + b, base + s);
    if (!raw) panels(from, n, k, scale, base + w);
    return from;
  }

  void panels(const float* weight, int64_t n, int64_t k, const float* scale, float* out) const {
    if (pairs_)
      pack_pairs(weight, n, k, scale, out);
    else
      kernels().pack({weight, k, 1, n, k, scale, nullptr, out});
  }

  /// [channels][taps] as [taps] rows of `row` floats, pieces of channels each in its place.
  void taps(const Tensor& w, int64_t kernel, const float* scale, std::initializer_list<Piece> pieces, int64_t row,
            float* out) {
    const float* from = dense(w, scratch_);
    const int64_t taps = kernel * kernel;
    std::fill(out, out + taps * row, 0.f);
    for (const Piece& p : pieces)
      for (int64_t c = 0; c < p.count; c++)
        for (int64_t i = 0; i < taps; i++)
          out[i * row + p.to + c] = from[(p.from + c) * taps + i] * (scale ? scale[p.from + c] : 1.f);
  }

  const Checks check_{"program_pack"};
  const std::vector<Tensor>& parameters_;
  const bool pairs_;
  float* packed_;
  size_t next_ = 0;
  Scratch& scratch_;
};

}  // namespace

std::vector<RawLayers> pack_program(const Program& p, const std::vector<Tensor>& parameters, float* packed,
                                    Scratch& scratch) {
  Packer packer(parameters, p.pairs, packed, scratch);
  std::vector<RawLayers> raw;
  for (const Step& t : p.steps) raw.push_back(packer.step(t));
  packer.finish();
  return raw;
}

}  // namespace ghost
