// A small map that a larger one is multiplied by, each of its pixels as often as nearest-neighbour upsampling repeats
// it.
#pragma once
#include <vector>

#include "maps.h"
#include "nearest.h"

namespace ghost {

/// The pixels of an axis of `from` that each of `to` pixels is with, as F.interpolate(mode="nearest") has them.
inline std::vector<int32_t> nearest(int64_t from, int64_t to) {
  const Nearest places(from, to);
  std::vector<int32_t> out(to);
  for (int64_t i = 0; i < to; i++) out[i] = static_cast<int32_t>(places.at(i));
  return out;
}

/// The small map, N x C x h x w, as dense rows in NHWC order.
struct UpsampledGate {
  float* data = nullptr;  // null: there is none
  int64_t h = 0, w = 0, pixel = 0;
  std::vector<int32_t> rows, columns;  // its row with each row of the large map, its pixel with each of a row's

  explicit operator bool() const { return data; }
  float* row(int64_t image, int64_t y) const { return data + (image * h + rows[y]) * w * pixel; }

  /// The pixels of a large map's row, beside the gate's.
  Upsampled beside(const Rows& x, int64_t channels) const {
    return {x.data, x.pixel, static_cast<int64_t>(columns.size()), channels, columns.data()};
  }

  /// `to` = x times the gate, for `count` rows of one image from y on, of `channels` channels from the first given.
  void multiply(const Rows& x, int64_t image, int64_t y, int64_t count, int64_t first, int64_t channels,
                const Rows& to) const {
    const int64_t width = static_cast<int64_t>(columns.size());
    for (int64_t i = 0; i < count; i++)
      kernels().multiply_upsampled(beside({x.data + i * width * x.pixel, x.pixel}, channels), row(image, y + i) + first,
                                   pixel, to.data + i * width * to.pixel, to.pixel);
  }

  /// The first row that is with the gate's row `at` or one below it.
  int64_t first_row_of(int64_t at) const {
    return std::lower_bound(rows.begin(), rows.end(), static_cast<int32_t>(at)) - rows.begin();
  }
};

/// A gate for maps of height x width: the tensor's own memory where its rows are dense, else a copy.
inline UpsampledGate make_gate(const abi::Tensor& t, int64_t height, int64_t width, Scratch& scratch) {
  const Map map(t);
  UpsampledGate g;
  g.h = map.h, g.w = map.w, g.rows = nearest(map.h, height), g.columns = nearest(map.w, width);
  if (map.direct && map.image == map.h * map.row) {
    g.data = reinterpret_cast<float*>(map.data), g.pixel = map.pixel;
    return g;
  }
  g.pixel = padded(map.c);
  g.data = scratch.floats(map.n * map.h * map.w * g.pixel);
  for (int64_t i = 0; i < map.n; i++)
    kernels().gather({map.at(i, 0), map.bf16, map.channel, map.row, map.pixel}, map.h, map.w, map.c,
                     g.data + i * map.h * map.w * g.pixel, map.w * g.pixel, g.pixel);
  return g;
}

}  // namespace ghost
