// Depthwise convolutions from map to map; in float32 a thread has two lanes of some rows x kGroup columns at once.
#pragma once
#include "diagonal.h"

namespace ghost::cuda {

/// Results of two lanes at some rows of four columns, by K x K taps at stride S. The first pixel that is read is `at`
/// bytes after `map`, which all threads share.
template <class T, int K, int S, int R>
GHOST_DEVICE void convolve(float (&sum)[R][kGroup][2], const unsigned char* map, int at, const Map& m,
                           const float* weight) {
  constexpr int kReadRows = (R - 1) * S + K, kReads = (kGroup - 1) * S + K;
  int columns[kReads];  // each by itself, else the address of each would be a sum of the one before
#pragma unroll
  for (int x = 0; x < kReads; x++) columns[x] = opaque(x * m.pitch);
#pragma unroll
  for (int y = 0; y < kReadRows; y++, at = next_row(at, m.row, m.ring)) {
    float v[kReads][2];
#pragma unroll
    for (int x = 0; x < kReads; x++) load_pair<T>(v[x], map + at + columns[x]);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int dy = y - r * S;
      if (dy < 0 || dy >= K) continue;
#pragma unroll
      for (int dx = 0; dx < K; dx++) {
        const auto tap = constant(reinterpret_cast<const Pair<float>*>(weight + (dy * K + dx) * kTapLanes));
#pragma unroll
        for (int c = 0; c < kGroup; c++) {
          sum[r][c][0] = add_product(v[c * S + dx][0], tap.first, sum[r][c][0]);
          sum[r][c][1] = add_product(v[c * S + dx][1], tap.second, sum[r][c][1]);
        }
      }
    }
  }
}

/// The same for any size and stride, one row at a time.
template <class T>
GHOST_DEVICE void convolve(float (&sum)[1][kGroup][2], const unsigned char* map, int at, const Map& m,
                           const float* weight, int kernel, int stride) {
#pragma unroll 1
  for (int dy = 0; dy < kernel; dy++, at = next_row(at, m.row, m.ring)) {
#pragma unroll 1
    for (int dx = 0; dx < kernel; dx++) {
      const auto tap = constant(reinterpret_cast<const Pair<float>*>(weight + (dy * kernel + dx) * kTapLanes));
#pragma unroll
      for (int c = 0; c < kGroup; c++) {
        float v[2];
        load_pair<T>(v, map + (c * stride + dx) * m.pitch + at);
        sum[0][c][0] = add_product(v[0], tap.first, sum[0][c][0]);
        sum[0][c][1] = add_product(v[1], tap.second, sum[0][c][1]);
      }
    }
  }
}

/// K 0: the stage's own size and stride.
template <int K, int S, int R, class T>
GHOST_DEVICE void depthwise_stage(const Work<T>& w, const Stage& g) {
  const Map &in = w.map(g.in), &out = w.map(g.out);
  const Columns &read = w.columns(g.in), &made = w.columns(g.out);
  const Rows rows = w.rows(out);
  const int kernel = K ? K : g.kernel, stride = K ? S : g.stride;
  const int pairs = g.items.value, count = pairs * made.groups.value * cdiv(rows.size(), R);
  const int shift = made.begin * stride - kernel / 2 - read.origin + in.halo;
  const int place = made.begin - made.origin + out.halo;
  const float *const weights = w.a.vectors + g.weight, *const biases =
                                                           w.a.vectors + g.bias + layer_of_blocks() * g.lane_step;
  const unsigned char* const map = w.at(in, g.in_lane);
  unsigned char* const result = w.at(out, g.out_lane);
  const Bounds<T> bounds(g.low, g.high);
#pragma unroll 1
  for (int item = thread(); item < count; item += threads()) {
    const int q = divide(item, g.items), lane = 2 * (item - q * pairs), strip = divide(q, made.groups);
    const int column = (q - strip * made.groups.value) * kGroup, row = rows.begin + strip * R;
    const int from = pixel(in, slot_of(in, row * stride - kernel / 2), column * stride + shift) + lane * int{sizeof(T)};
    const float* const taps = weights + first_tap(kernel, lane + g.parameter + layer_of_blocks() * g.lane_step);
    float sum[R][kGroup][2];
    const auto bias = constant(reinterpret_cast<const Pair<float>*>(biases + lane));
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int c = 0; c < kGroup; c++) sum[r][c][0] = bias.first, sum[r][c][1] = bias.second;
    if constexpr (K)
      convolve<T, K, S, R>(sum, map, from, in, taps);
    else
      convolve<T>(sum, map, from, in, taps, kernel, stride);
    const int there = made.count.value - column;
    int to = pixel(out, slot_of(out, row), column + place) + lane * int{sizeof(T)};
    const auto store = [&](const auto& each) {
#pragma unroll
      for (int r = 0; r < R; r++, to = next_row(to, out.row, out.ring)) {
#pragma unroll
        for (int c = 0; c < kGroup; c++) each(r, c, reinterpret_cast<Pair<T>*>(result + to + opaque(c * out.pitch)));
      }
    };
    if (K && there >= kGroup && row + R <= rows.end && g.high == kNoBound) {  // what is frequent, in fewer instructions
      if (g.low == 0.f)
        store([&](int r, int c, Pair<T>* place) { put(place, relu_pair<T>(sum[r][c][0], sum[r][c][1])); });
      else
        store([&](int r, int c, Pair<T>* place) { put(place, plain_pair<T>(sum[r][c][0], sum[r][c][1])); });
    } else {
      store([&](int r, int c, Pair<T>* place) {
        const auto value = bounds(sum[r][c][0], sum[r][c][1]);
        if (c < there && row + r < rows.end) put(place, value);
      });
    }
  }
}

template <class T>
GHOST_DEVICE void depthwise(const Work<T>& w, const Stage& g) {
  if constexpr (sizeof(T) == 2) {
    diagonal(w, g);
  } else {
    switch (8 * g.kernel + g.stride) {  // as many rows as there are registers for
      case 8 * 3 + 1:
        return depthwise_stage<3, 1, 2>(w, g);
      case 8 * 3 + 2:
        return depthwise_stage<3, 2, 2>(w, g);
      case 8 * 5 + 1:
        return depthwise_stage<5, 1, 1>(w, g);
      case 8 * 5 + 2:
        return depthwise_stage<5, 2, 1>(w, g);
      default:
        return depthwise_stage<0, 0, 1>(w, g);
    }
  }
}

}  // namespace ghost::cuda
