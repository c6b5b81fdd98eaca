// Stages that move lanes between global and shared memory.
#pragma once
#include "window.h"

namespace ghost::cuda {

using Words = Vector<uint32_t, 4>;

/// The rows outside of the image that this step adds to maps, as zeros.
template <class T>
GHOST_DEVICE void fill_padding(const Work<T>& w) {
#pragma unroll 1
  for (int index = own_zero(); index < w.launch.maps; index++) {
    const Map& m = w.map(index);
    if (!m.padded) continue;
    const Rows rows = w.padded_rows(m);
#pragma unroll 1
    for (int row = rows.begin; row < rows.end; row++) {
      if (0 <= row && row < m.height) {
        row = m.height - 1;  // the next one is below the image
        continue;
      }
      auto* const to = reinterpret_cast<Words*>(w.at(m, 0) + pixel(m, slot_of(m, row), m.halo));
#pragma unroll 1
      for (int i = thread(); i < (m.row - m.halo * m.pitch) / 16; i += threads()) to[i] = Words{};
    }
  }
}

template <int kBytes, class T>
GHOST_DEVICE void load_vectors(const Work<T>& w, const Stage& g, const Rows& rows) {
  constexpr int N = kBytes / sizeof(T);
  const Map& m = w.map(g.out);
  const Pixels<T> pixels(w, g.out, rows, g.out);
  const T* const first = w.a.inputs[g.tensor] +
                         ((w.step.image * m.height + rows.begin) * m.width + pixels.columns.begin) * g.channels +
                         g.channel;
  unsigned char* const to = w.at(m, g.out_lane);
  const int count = pixels.count() * g.items.value;
#pragma unroll 1
  for (int i = thread(); i < count; i += threads()) {
    const int p = divide(i, g.items), l = (i - p * g.items.value) * N, row = pixels.row_of(p);
    const int column = p - row * pixels.columns.count.value, place = pixels.at(row, column) + l * int{sizeof(T)};
    const T* const from = first + ((row * m.width + column) * g.channels + l);
    if constexpr (kBytes >= 8)
      copy_async<kBytes>(to + place, from);
    else
      *reinterpret_cast<T*>(to + place) = *from;
  }
}

/// Begins to load the rows that a step adds to a map.
template <class T>
GHOST_DEVICE void load(const Work<T>& w, const Stage& g) {
  if (w.launch.window.size && g.tensor == 0) return load_windows(w, g);
  const Rows rows = w.rows(w.map(g.out));
  switch (g.unit) {
    case 16:
      return load_vectors<16>(w, g, rows);
    case 8:
      return load_vectors<8>(w, g, rows);
    default:
      return load_vectors<sizeof(T)>(w, g, rows);
  }
}

/// The lane of a channel of the output.
GHOST_DEVICE int lane_of(const Stage& g, int channel) {
  const int made = channel - g.primary;
  if (made < 0) return channel;
  const int each = divide(made, g.multiplier);
  return g.group * (1 + made - each * g.multiplier.value) + each;
}

/// N channels at a time, side by side in memory, or with kJoin in a map of shared memory. In shared memory half of them
/// are, since the channels of a Ghost module come from two places.
template <int N, bool kJoin, class T>
GHOST_DEVICE void store_vectors(const Work<T>& w, const Stage& g) {
  constexpr int kParts = N == 1 ? 1 : 2, kPart = N / kParts;
  using Part = Vector<T, kPart>;
  struct alignas(N * sizeof(T)) V {
    Part parts[kParts];
  };
  const Map &m = w.map(g.in), &out = w.map(g.out);
  const Rows rows = w.rows(out);
  const Pixels<T> pixels(w, g.in, rows, g.out);
  const int channel = g.channel + layer_of_blocks() * g.lane_step,
            first = rows.begin * out.width + pixels.columns.begin;
  const int64_t image = w.step.image * out.height * out.width * g.channels + channel;
  T* const to = (g.between ? w.a.between : w.a.out) + image;
  const T* const residual = w.a.residual + image;
  const int count = pixels.count() * g.items.value;
  unsigned char* const map = w.at(m, g.in_lane);
#pragma unroll 1
  for (int i = thread(); i < count; i += threads()) {
    const int p = divide(i, g.items), c = (i - p * g.items.value) * N, row = pixels.row_of(p);
    const int column = p - row * pixels.columns.count.value,
              offset = (first + row * out.width + column) * g.channels + c;
    unsigned char* const own = map + pixels.at(row, column);
    V v;
    Part* places[kParts];
#pragma unroll
    for (int i = 0; i < kParts; i++) {
      const int from = c + i * kPart;  // where several are taken at once, each primary channel has one cheap channel
      const int lane = N == 1 ? lane_of(g, from) : from < g.primary ? from : from + (g.group - g.primary);
      places[i] = reinterpret_cast<Part*>(own + lane * int{sizeof(T)});
      v.parts[i] = *places[i];
    }
    if (g.tensor != kNoMap) {
      V other;
      if (g.tensor >= 0) {
        const Pixels<T> map(w, g.tensor, rows, g.out);
        other = *reinterpret_cast<const V*>(w.at(map.m, channel + c) + map.at(row, column));
      } else {
        other = *reinterpret_cast<const V*>(residual + offset);
      }
#pragma unroll
      for (int i = 0; i < kParts; i++) {
        v.parts[i] = add(v.parts[i], other.parts[i]);
        if (g.keep) *places[i] = v.parts[i];
      }
    }
    if constexpr (kJoin) {
      const Pixels<T> joined(w, g.out, rows, g.out);
      *reinterpret_cast<V*>(w.at(out, channel + c) + joined.at(row, column)) = v;
    } else {
      *reinterpret_cast<V*>(to + offset) = v;
    }
  }
}

/// Lanes to channels of the output, with a residual. What is between two blocks is written by one chunk.
template <class T>
GHOST_DEVICE void store(const Work<T>& w, const Stage& g) {
  if (g.between && layer_of_blocks()) return;
  if (g.unit == 16) return store_vectors<kVector<T>, false>(w, g);
  store_vectors<1, false>(w, g);
}

/// Lanes to channels of a map that the next block reads, with a residual.
template <class T>
GHOST_DEVICE void join(const Work<T>& w, const Stage& g) {
  if (g.unit == 16) return store_vectors<kVector<T>, true>(w, g);
  store_vectors<1, true>(w, g);
}

}  // namespace ghost::cuda
