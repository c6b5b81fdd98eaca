#include "packer.h"

#include "cpu/maps.h"

namespace ghost {

using abi::Tensor;

const Tensor& Packer::next() {
  check_.that(next_ < parameters_.size(), "parameters", "more of them", static_cast<int64_t>(parameters_.size()));
  const Tensor& t = parameters_[next_++];
  check_.that(readable(t), "parameters", "float32 or bfloat16 tensors on the CPU",
              Checks::text(t.dtype()) + " at index " + std::to_string(next_ - 1));
  return t;
}

const float* Packer::weight(std::initializer_list<int64_t> sizes) {
  const Tensor& t = next();
  const int64_t* size = sizes.begin();
  if (t.dim() == 2 && size[2] == 1 && size[3] == 1)  // a Linear's, for a 1x1 convolution's
    check_.shape("parameters", t, {size[0], size[1]});
  else
    check_.shape("parameters", t, sizes);
  return dense(t, scratch_);
}

const float* Packer::vector(bool present, int64_t channels) {
  if (!present) return nullptr;
  const Tensor& t = next();
  check_.shape("parameters", t, {channels});
  return dense(t, scratch_);
}

const float* Packer::epilogue(const Layer& l, int64_t channels, float* bias, float* slopes, int64_t kept) {
  kept = kept < 0 ? channels : kept;
  const float* shift = vector(l.has_bias, channels);
  const float *gamma = vector(l.has_gamma, channels), *beta = vector(l.has_beta, channels);
  const float *mean = vector(l.has_norm, channels), *var = vector(l.has_norm, channels);
  std::fill(bias, bias + padded(kept), 0.f);
  if (l.packs_slopes()) std::fill(slopes, slopes + padded(kept), 0.f);
  float* scale = nullptr;
  if (l.has_norm) {
    scale = scratch_.floats(channels);
    float* folded = scratch_.floats(channels);
    kernels().fold({channels, shift, gamma, beta, mean, var, l.eps, scale, folded});
    shift = folded;
  }
  if (shift) std::copy_n(shift, kept, bias);
  if (slope_kind(l.act) == kNumber) std::fill_n(slopes, kept, static_cast<float>(l.slope));
  if (l.has_slopes) {
    const Tensor& t = next();
    check_.that(t.numel() == channels || t.numel() == 1, "parameters", "1 slope or one per channel", t.numel());
    const float* s = dense(t, scratch_);
    for (int64_t i = 0; i < kept; i++) slopes[i] = s[t.numel() == 1 ? 0 : i];
  }
  return scale;
}

const float* Packer::lanes_epilogue(const Layer& l, const Channels& c, bool has_bias) {
  const int64_t count = padded(c.count());
  float *bias = scratch_.floats(count), *slopes = scratch_.floats(count);
  const float* scale = epilogue(l, c.count(), bias, slopes);
  const auto spread = [&](const float* from, float* to) {
    std::fill_n(to, padded(c.width()), 0.f);
    c.each([&](int64_t lane, int64_t channel, int64_t some) { std::copy_n(from + channel, some, to + lane); });
  };
  if (has_bias) spread(bias, at(l.bias));
  if (l.packs_slopes()) spread(slopes, at(l.slopes));
  return scale;
}

void Packer::product(const Layer& l, int64_t n, int64_t k) {
  const float* from = weight({n, k, 1, 1});
  const float* scale = epilogue(l, n);
  if (l.raw < 0)
    panels(l, from, n, k, scale);
  else
    raw_[l.raw] = from;
}

void Packer::taps(const Layer& l, const float* weight, int64_t taps, const float* scale, const Channels& channels,
                  int64_t row) const {
  float* out = at(l.weight);
  std::fill(out, out + taps * row, 0.f);
  channels.each([&](int64_t lane, int64_t channel, int64_t count) {
    for (int64_t c = channel; c < channel + count; c++)
      for (int64_t i = 0; i < taps; i++)
        out[i * row + lane + c - channel] = weight[c * taps + i] * (scale ? scale[c] : 1.f);
  });
}

std::vector<const float*> Packer::finish() const {
  check_.that(next_ == parameters_.size(), "parameters", std::to_string(next_) + " of them",
              static_cast<int64_t>(parameters_.size()));
  return raw_;
}

std::vector<const float*> pack_program(const Program& p, const std::vector<Tensor>& parameters, float* packed,
                                       Scratch& scratch) {
  Packer packer(p, parameters, packed, scratch);
  for (const auto& step : p.steps) step->pack(packer);
  return packer.finish();
}

}  // namespace ghost
