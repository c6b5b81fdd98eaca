// A 1x1 convolution of pixels in shared memory, by the warps' products, in float32.
//
// A weight is in tiles of 16 inputs x 8 outputs, all outputs of 16 inputs before the next 16. In half precision a
// tile is in the order of the lanes that read it (mma.sync's fragment B), in float32 row by row:
// ghost_ops/backends/cuda/weights.py.
#pragma once
#include "copies.h"

namespace ghost::cuda {

/// Of a tile of the result a lane holds four elements: two neighbouring columns of two rows, 8 rows apart.
GHOST_DEVICE int fragment_row(int half) { return (lane() >> 2) + 8 * half; }
GHOST_DEVICE int fragment_column() { return 2 * (lane() & 3); }

struct FourHalves {
  uint32_t bits[2];
};

template <int R, int C>
using Sums = float[R][C][4];

/// sums += pixels by tiles of outputs, in half precision. `a`: bytes from `map` to what a lane reads of each tile of
/// pixels (ldmatrix); `weight` has `apart` elements from 16 inputs to the next, and `count` tiles.
template <int R, int C, class T>
GHOST_DEVICE void accumulate(Sums<R, C>& sums, const unsigned char* map, const int (&a)[R], const T* weight, int apart,
                             int depth, int count) {
  weight += lane() * 4;
  FourHalves next[C]{};
#pragma unroll
  for (int j = 0; j < C; j++)
    if (j < count) next[j] = constant(reinterpret_cast<const FourHalves*>(weight + j * kWeightTile));
#pragma unroll 1
  for (int k = 0; k < depth; k++, map += kDepth * 2) {
    FourHalves b[C];
#pragma unroll
    for (int j = 0; j < C; j++) b[j] = next[j];
    if (k + 1 < depth) {  // loaded while the product of these is made
      weight += apart;
#pragma unroll
      for (int j = 0; j < C; j++)
        if (j < count) next[j] = constant(reinterpret_cast<const FourHalves*>(weight + j * kWeightTile));
    }
    uint32_t fragments[R][4];
#pragma unroll
    for (int i = 0; i < R; i++) load_matrices(fragments[i], map + a[i]);
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < C; j++) multiply_add(T{}, sums[i][j], fragments[i], b[j].bits);
  }
}

/// The same in float32; `a`: to the two pixels whose results a lane has.
template <int R, int C>
GHOST_DEVICE void accumulate(Sums<R, C>& sums, const unsigned char* map, const int (&a)[R][2], const float* weight,
                             int apart, int depth, int count) {
  weight += fragment_column();
#pragma unroll 1
  for (int k = 0; k < depth; k++, weight += apart, map += kDepth * 4) {
#pragma unroll 1
    for (int d = 0; d < kDepth; d++) {
      Pair<float> b[C];
#pragma unroll
      for (int j = 0; j < C; j++)
        if (j < count) b[j] = constant(reinterpret_cast<const Pair<float>*>(weight + j * kWeightTile + d * kColumns));
#pragma unroll
      for (int i = 0; i < R; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float left = *reinterpret_cast<const float*>(map + a[i][half] + d * 4);
#pragma unroll
          for (int j = 0; j < C; j++) {
            if (j >= count) continue;
            sums[i][j][2 * half] = add_product(left, b[j].first, sums[i][j][2 * half]);
            sums[i][j][2 * half + 1] = add_product(left, b[j].second, sums[i][j][2 * half + 1]);
          }
        }
      }
    }
  }
}

/// R x C tiles of 16 pixels x 8 outputs at once.
template <int R, int C, class T>
GHOST_DEVICE void product_of(const Work<T>& w, const Stage& g) {
  const Map &in = w.map(g.in), &out = w.map(g.out);
  const Rows rows = w.rows(out);
  const Pixels<T> from(w, g.in, rows, g.out), to(w, g.out, rows, g.out);
  const int tiles = g.lanes / kColumns, count = from.count();
  const int items = cdiv(count, kRows * R) * g.items.value;
  const T* const weights = w.a.matrices + g.weight + layer_of_blocks() * g.weight_step;
  const float* const biases = w.a.vectors + g.bias + layer_of_blocks() * g.lane_step + fragment_column();
  const unsigned char* const map = w.at(in, g.in_lane);
  unsigned char* const result = w.at(out, g.out_lane + fragment_column());
  const Bounds<T> bounds(g.low, g.high);
#pragma unroll 1
  for (int item = warp(); item < items; item += warps()) {
    const int m = divide(item, g.items), tile = (item - m * g.items.value) * C, first = m * kRows * R;
    const int there = least(tiles - tile, C);
    // Pixels past the last repeat it: their results mean nothing, and are not written.
    Sums<R, C> sums;
#pragma unroll
    for (int j = 0; j < C; j++) {
      Pair<float> bias{};
      if (j < there) bias = constant(reinterpret_cast<const Pair<float>*>(biases + (tile + j) * kColumns));
#pragma unroll
      for (int i = 0; i < R; i++) {
        sums[i][j][0] = sums[i][j][2] = bias.first;
        sums[i][j][1] = sums[i][j][3] = bias.second;
      }
    }
    const T* const weight = weights + tile * kWeightTile;
    if constexpr (sizeof(T) == 2) {
      int a[R];
#pragma unroll
      for (int i = 0; i < R; i++)
        a[i] = from.at(least(first + kRows * i + (lane() & 15), count - 1)) + (lane() >> 4) * 16;
      accumulate(sums, map, a, weight, g.apart, g.depth, there);
    } else {
      int pairs[R][2];
#pragma unroll
      for (int i = 0; i < R; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          pairs[i][half] = from.at(least(first + kRows * i + fragment_row(half), count - 1));
      accumulate(sums, map, pairs, weight, g.apart, g.depth, there);
    }
    const auto store = [&](const auto& each) {
#pragma unroll
      for (int i = 0; i < R; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int p = first + kRows * i + fragment_row(half);
          const bool is_there = p < count;
          const int place = to.at(is_there ? p : first) + tile * kColumns * int{sizeof(T)};
#pragma unroll
          for (int j = 0; j < C; j++) {
            const auto value = each(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
            if (is_there && j < there)
              put(reinterpret_cast<Pair<T>*>(result + place + j * kColumns * int{sizeof(T)}), value);
          }
        }
      }
    };
    if (g.high < kNoBound)
      store(bounds);
    else if (g.low == 0.f)
      store([](float first, float second) { return relu_pair<T>(first, second); });
    else
      store([](float first, float second) { return plain_pair<T>(first, second); });
  }
}

template <class T>
GHOST_DEVICE void product(const Work<T>& w, const Stage& g) {
  if (g.kernel == kTallTile) return product_of<4, 2>(w, g);
  product_of<2, 4>(w, g);
}

}  // namespace ghost::cuda
