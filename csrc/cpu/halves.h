// The two halves of a Ghost module as the kernels want them: packed weights, padded coefficients, geometry.
#pragma once
#include <optional>

#include "checks.h"
#include "maps.h"
#include "rings.h"

namespace ghost {

/// The cheap operation: which of y1's channels feed it, its packed weight, and how much of it is kept.
///
/// Its channel j reads y1's channel j / multiplier, so with a multiplier above 1 the rows of y1 are expanded first.
struct Cheap {
  int64_t kernel = 1, multiplier = 0;
  int64_t channels = 0;  // that are computed
  const float* weight = nullptr;
  int64_t weight_row = 0;
  const float* bias = nullptr;

  int64_t halo() const { return kernel / 2; }
  bool expands() const { return multiplier > 1; }
};

/// [channels][k][k] to [k * k][padded(channels)], each channel scaled; flipped for the gradient of the input.
inline float* pack_cheap(const float* weight, int64_t kernel, int64_t channels, const float* scale, Scratch& scratch,
                         bool flip = false) {
  const int64_t taps = kernel * kernel, pad = padded(channels);
  float* out = scratch.zeros(taps * pad);
  for (int64_t c = 0; c < channels; c++)
    for (int64_t t = 0; t < taps; t++)
      out[(flip ? taps - 1 - t : t) * pad + c] = weight[c * taps + t] * (scale ? scale[c] : 1.f);
  return out;
}

/// Slopes of an activation, one a channel: its number, or its weight of 1 or `channels` elements.
inline const float* pack_slopes(Act act, double slope, const std::optional<abi::Tensor>& weight, int64_t channels,
                                Scratch& scratch) {
  if (slope_kind(act) == kNumber) return padded_copy(nullptr, channels, scratch, static_cast<float>(slope));
  if (slope_kind(act) != kWeight || !weight) return nullptr;
  const float* w = dense(*weight, scratch);
  return weight->numel() == 1 ? padded_copy(nullptr, channels, scratch, *w) : padded_copy(w, channels, scratch);
}

/// Channel j of `to` is channel j / multiplier of `from`.
inline void expand_channels(const float* from, int64_t from_pixel, float* to, int64_t to_pixel, int64_t pixels,
                            int64_t channels, int64_t multiplier) {
  for (int64_t i = 0; i < pixels; i++)
    for (int64_t j = 0; j < channels; j++) to[i * to_pixel + j] = from[i * from_pixel + j / multiplier];
}

/// The other way: channel j / multiplier of `to` gains channel j of `from`.
inline void reduce_channels(const float* from, int64_t from_pixel, float* to, int64_t to_pixel, int64_t pixels,
                            int64_t channels, int64_t multiplier) {
  for (int64_t i = 0; i < pixels; i++)
    for (int64_t j = 0; j < channels; j++) to[i * to_pixel + j / multiplier] += from[i * from_pixel + j];
}

/// Rows of a step: enough pixels for the widest register tiles, and pairs of rows for the 3x3 kernel.
inline int64_t step_rows(int64_t width, int64_t height) {
  const int64_t rows = (55 + width) / width;
  return std::max<int64_t>(1, std::min(height, std::max<int64_t>(rows, 2)));
}

/// Bands of rows that each image is cut into, so that all threads have work; each recomputes its halo.
inline int64_t bands_for(int64_t images, int64_t height, int64_t threads) {
  if (threads <= 1 || images % threads == 0 || images >= 4 * threads) return 1;
  return std::min(height, threads);
}

/// Below this many FLOPs a parallel region costs more than it gains.
constexpr int64_t kSerialFlops = 1 << 20;

}  // namespace ghost
