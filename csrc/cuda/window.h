// The first map of a net's first convolution: a pixel has the numbers of a window of the image, so that a product
// follows.
#pragma once
#include "work.h"

namespace ghost::cuda {

/// Loads the windows of the rows that a step adds to a map, zeros where they are outside of the image. A warp has 16
/// bytes of numbers of neighbouring pixels; the image may be channels_last or not.
template <class T>
GHOST_DEVICE void load_windows(const Work<T>& w, const Stage& g) {
  constexpr int N = kVector<T>, kSide = 256;  // of a window at most: MOST_WINDOW in ghost_ops/backends/cuda/calls.py
  struct alignas(N * sizeof(T)) V {
    T values[N];
  };
  const Window& window = w.launch.window;
  const Rows rows = w.rows(w.map(g.out));
  const Pixels<T> pixels(w, g.out, rows, g.out);
  const T* const image = w.a.inputs[g.tensor] + w.step.image * window.height * window.width * window.channels;
  unsigned char* const to = w.at(pixels.m, g.out_lane);
  const int vectors = g.items.value, count = pixels.count();
#pragma unroll 1
  for (int share = warp(); share < vectors * g.count; share += warps()) {
    const int group = divide(share, g.items), first = (share - group * vectors) * N;
    int offsets[N], places[N];  // in elements from a window's first one; as rows and columns from it
#pragma unroll
    for (int j = 0; j < N; j++) {
      const int channel = divide(first + j, window.taps), tap = first + j - channel * window.taps.value;
      const int row = divide(tap, window.columns), column = tap - row * window.size;
      offsets[j] = channel * window.channel + row * window.row + column * window.column;
      places[j] = row * kSide + column;
    }
#pragma unroll 1
    for (int p = group * 32 + lane(); p < count; p += g.count * 32) {
      const int row = pixels.row_of(p), column = p - row * pixels.columns.count.value;
      const int y = (rows.begin + row) * window.stride - window.padding,
                x = (pixels.columns.begin + column) * window.stride - window.padding;
      const bool is_inside = y >= 0 && x >= 0 && y + window.size <= window.height && x + window.size <= window.width;
      const T* const from = image + (y * window.row + x * window.column);
      V v{};
#pragma unroll
      for (int j = 0; j < N; j++) {
        const auto own_row = static_cast<uint32_t>(y + places[j] / kSide),
                   own_column = static_cast<uint32_t>(x + places[j] % kSide);
        if (first + j < g.channels && (is_inside || (own_row < static_cast<uint32_t>(window.height) &&
                                                     own_column < static_cast<uint32_t>(window.width))))
          v.values[j] = from[offsets[j]];
      }
      *reinterpret_cast<V*>(to + pixels.at(row, column) + first * int{sizeof(T)}) = v;
    }
  }
}

}  // namespace ghost::cuda
