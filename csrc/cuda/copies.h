// Stages that move lanes between global and shared memory.
#pragma once
#include "window.h"

namespace ghost::cuda {

using Words = Vector<uint32_t, 4>;

/// The rows outside of the image that a step adds to a map, as zeros.
template <class T>
GHOST_DEVICE void fill_padding(const Work<T>& w, const Map& m) {
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

template <int kBytes, class T>
GHOST_DEVICE void load_vectors(const Work<T>& w, const Stage& g, const Rows& rows) {
  const Map& m = w.map(g.out);
  const Pixels<T> pixels(w, g.out, rows, g.out);
  const int between = m.pitch - g.items.value * kBytes, others = g.channels * int{sizeof(T)} - g.items.value * kBytes;
  const T* const first = w.a.inputs[g.tensor] +
                         ((w.step.image * m.height + rows.begin) * m.width + pixels.columns.begin) * g.channels +
                         g.channel;
  const unsigned char* from = nullptr;
  unsigned char *const map = w.at(m, g.out_lane), *to = nullptr;
  for_vectors(
      pixels, g,
      [&](int row) {
        from = opaque(reinterpret_cast<const unsigned char*>(first + row * m.width * g.channels));
        to = map + pixels.at(row, 0);
      },
      [&](int i, int p) {
        unsigned char* const place = to + (i * kBytes + p * between);
        const T* const vector = reinterpret_cast<const T*>(from + (i * kBytes + p * others));
        if constexpr (kBytes >= 8)
          copy_async<kBytes>(place, vector);
        else
          *reinterpret_cast<T*>(place) = *vector;
      });
}

/// Begins to load the rows that a step adds to a map.
template <class T>
GHOST_DEVICE void load(const Work<T>& w, const Stage& g) {
  if (g.pads) fill_padding(w, w.map(g.out));
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

/// N channels at a time, side by side in memory, or with kJoin in a map of shared memory. In shared memory kPart of
/// them are, since the channels of a Ghost module come from two places.
template <int N, int kPart, bool kJoin, class T>
GHOST_DEVICE void store_vectors(const Work<T>& w, const Stage& g) {
  constexpr int kParts = N / kPart, kBytes = N * sizeof(T);
  using Part = Vector<T, kPart>;
  struct alignas(kBytes) V {
    Part parts[kParts];
  };
  const Map &m = w.map(g.in), &out = w.map(g.out);
  const Rows rows = w.rows(out);
  const Pixels<T> pixels(w, g.in, rows, g.out);
  const int channel = g.channel + layer_of_blocks() * g.lane_step, items = g.items.value;
  const int others = g.channels * int{sizeof(T)} - items * kBytes;
  const int64_t first =
      ((w.step.image * out.height + rows.begin) * out.width + pixels.columns.begin) * g.channels + channel;
  T* const tensor = (g.between ? w.a.between : w.a.out) + first;
  const T* const residual = w.a.residual + first;
  unsigned char *const map = w.at(m, g.in_lane), *own = nullptr, *to = nullptr;
  const unsigned char* added = nullptr;
  for_vectors(
      pixels, g,
      [&](int row) {
        const int line = row * out.width * g.channels;
        own = map + pixels.at(row, 0);
        if (g.tensor >= 0) {
          const Pixels<T> other(w, g.tensor, rows, g.out);
          added = w.at(other.m, channel) + other.at(row, 0);
        } else {
          added = reinterpret_cast<const unsigned char*>(residual + line);
        }
        if constexpr (kJoin) {
          const Pixels<T> made(w, g.out, rows, g.out);
          to = w.at(out, channel) + made.at(row, 0);
        } else {
          to = opaque(reinterpret_cast<unsigned char*>(tensor + line));
        }
      },
      [&](int i, int p) {
        const int c = (i - p * items) * N, offset = i * kBytes + p * others;  // of channels, and bytes in memory
        V v;
        Part* places[kParts];
#pragma unroll
        for (int j = 0; j < kParts; j++) {
          const int from =
              c + j * kPart;  // where several are taken at once, each primary channel has one cheap channel
          const int lane = kPart == N && N > 1 ? from
                           : N == 1            ? lane_of(g, from)
                                               : from + (from < g.primary ? 0 : g.group - g.primary);
          places[j] = reinterpret_cast<Part*>(own + p * m.pitch + lane * int{sizeof(T)});
          v.parts[j] = *places[j];
        }
        if (g.tensor != kNoMap) {
          const V other = *reinterpret_cast<const V*>(
              added + (g.tensor >= 0 ? p * w.map(g.tensor).pitch + c * int{sizeof(T)} : offset));
#pragma unroll
          for (int j = 0; j < kParts; j++) {
            v.parts[j] = add(v.parts[j], other.parts[j]);
            if (g.keep) *places[j] = v.parts[j];
          }
        }
        *reinterpret_cast<V*>(to + (kJoin ? p * out.pitch + c * int{sizeof(T)} : offset)) = v;
      });
}

template <bool kJoin, class T>
GHOST_DEVICE void store_units(const Work<T>& w, const Stage& g) {
  if (g.unit == 16) return store_vectors<kVector<T>, kVector<T>, kJoin>(w, g);
  if (g.unit == 8) return store_vectors<kVector<T>, kVector<T> / 2, kJoin>(w, g);
  store_vectors<1, 1, kJoin>(w, g);
}

/// Lanes to channels of the output, with a residual. What is between two blocks is written by one chunk.
template <class T>
GHOST_DEVICE void store(const Work<T>& w, const Stage& g) {
  if (g.between && layer_of_blocks()) return;
  store_units<false>(w, g);
}

/// Lanes to channels of a map that the next block reads, with a residual.
template <class T>
GHOST_DEVICE void join(const Work<T>& w, const Stage& g) {
  store_units<true>(w, g);
}

}  // namespace ghost::cuda
