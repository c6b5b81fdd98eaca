// Products of a warp: rows of shared memory (pixels) by a packed weight, in float32.
//
// A weight is in tiles of 16 inputs x 8 outputs, all outputs of 16 inputs before the next 16. In half precision a
// tile is in the order of the lanes that read it (mma.sync's fragment B), in float32 row by row:
// ghost_ops/backends/cuda/weights.py.
#pragma once
#include "activation.h"
#include "device.h"
#include "geometry.h"

namespace ghost::cuda {

GHOST_DEVICE int lane() { return thread() & 31; }
GHOST_DEVICE int warp() { return thread() >> 5; }
GHOST_DEVICE int warps() { return threads() >> 5; }
/// Of a product's result a lane holds four elements: two neighbouring columns of two rows, 8 rows apart.
GHOST_DEVICE int fragment_row(int i) { return (lane() >> 2) + 8 * (i >> 1); }
GHOST_DEVICE int fragment_column() { return 2 * (lane() & 3); }

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};
struct FourHalves {
  uint32_t bits[2];
};

template <class T>
GHOST_DEVICE void load_pair(float (&to)[2], const T* from) {
  const auto pair = *reinterpret_cast<const Pair<T>*>(from);
  to[0] = widen(pair.first), to[1] = widen(pair.second);
}
template <class T>
GHOST_DEVICE void store_pair(T* to, float first, float second) {
  *reinterpret_cast<Pair<T>*>(to) = {narrow<T>(first), narrow<T>(second)};
}

/// acc[i][j] += the 16 rows from `row` + 16 i of `a`, by tiles j < `count` of each of `steps` rows of tiles.
///
/// Rows past `rows` repeat the last one: their results mean nothing.
template <class T, int M, int N>
GHOST_DEVICE void accumulate(float (&acc)[M][N][4], const T* a, int stride, int row, int rows, const T* weight,
                             int tiles_a_step, int count, int steps) {
  if constexpr (sizeof(T) == 2) sync_warp();
#pragma unroll 1  // registers are short
  for (int k = 0; k < steps; k++, weight += int64_t{tiles_a_step} * kWeightTile) {
    if constexpr (sizeof(T) == 2) {
      uint32_t fragments[M][4];
#pragma unroll
      for (int i = 0; i < M; i++) {
        const int from = least(row + kRows * i + (lane() & 15), rows - 1);
        load_matrices(fragments[i], a + from * stride + k * kDepth + (lane() >> 4) * 8);
      }
#pragma unroll
      for (int j = 0; j < N; j++) {
        if (j < count) {
          const auto b = constant(reinterpret_cast<const FourHalves*>(weight + j * kWeightTile + lane() * 4));
#pragma unroll
          for (int i = 0; i < M; i++) multiply_add(T{}, acc[i][j], fragments[i], b.bits);
        }
      }
    } else {
#pragma unroll 2
      for (int depth = 0; depth < kDepth; depth++) {
        float left[M][2];
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
          const int from = least(row + kRows * (i / 2) + fragment_row(i % 2 * 2), rows - 1);
          left[i / 2][i % 2] = a[from * stride + k * kDepth + depth];
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
          if (j < count) {
            const auto b = constant(
                reinterpret_cast<const Pair<float>*>(weight + j * kWeightTile + depth * kColumns + fragment_column()));
#pragma unroll
            for (int i = 0; i < M; i++) {
              acc[i][j][0] += left[i][0] * b.first, acc[i][j][1] += left[i][0] * b.second;
              acc[i][j][2] += left[i][1] * b.first, acc[i][j][3] += left[i][1] * b.second;
            }
          }
        }
      }
    }
  }
}

/// Bias, activation, rounding: what follows a convolution.
struct Epilogue {
  const float *bias, *slopes;
  int act;
};

GHOST_DEVICE float activate(float v, const Epilogue& after, int channel) {
  return activation(v, after.act, after.slopes ? constant(after.slopes + channel) : 0.f);
}

GHOST_DEVICE float finish(float sum, const Epilogue& after, int channel) {
  return activate(sum + constant(after.bias + channel), after, channel);
}

/// The result of a warp's products, in rows of shared memory, with its bias and activation; `row` and `column` are the
/// first.
template <class T, int M, int N>
GHOST_DEVICE void store(T* out, int stride, const float (&acc)[M][N][4], int row, int rows, int column, int count,
                        const Epilogue& after) {
  const auto place = [&](int i, int j, int half) {
    return out + (row + kRows * i + fragment_row(2 * half)) * stride + column + kColumns * j + fragment_column();
  };
  const auto is_there = [&](int i, int j, int half) {
    return j < count && row + kRows * i + fragment_row(2 * half) < rows;
  };
#pragma unroll
  for (int i = 0; i < M; i++) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (j >= count) continue;
      const auto bias =
          constant(reinterpret_cast<const Pair<float>*>(after.bias + column + kColumns * j + fragment_column()));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (!is_there(i, j, half)) continue;
        float first = acc[i][j][2 * half] + bias.first, second = acc[i][j][2 * half + 1] + bias.second;
        if (after.act == kRelu) first = relu(first), second = relu(second);
        store_pair(place(i, j, half), first, second);
      }
    }
  }
  if (after.act <= kRelu) return;
  // A lane goes once more through what it wrote: in a loop, since twenty copies of all activations would be compiled
  // above. As in PyTorch the sum is rounded before.
#pragma unroll 1
  for (int n = 0; n < M * N * 2; n++) {
    const int i = n / (2 * N), j = n / 2 % N, half = n % 2, channel = column + kColumns * j + fragment_column();
    if (!is_there(i, j, half)) continue;
    float v[2];
    load_pair(v, place(i, j, half));
    store_pair(place(i, j, half), activate(v[0], after, channel), activate(v[1], after, channel + 1));
  }
}

/// A 1x1 convolution from rows to rows, by the whole block: `tiles` x 8 outputs of the weight, which has
/// `tiles_a_step` x 8 in all and begins at the first that is wanted, as its bias does. A warp makes `kWide` x 8 at
/// once.
template <int kWide, class T>
GHOST_DEVICE void pointwise(T* out, int out_stride, const T* in, int in_stride, int pixels, int depth, const T* weight,
                            int tiles_a_step, int tiles, const Epilogue& after) {
  const int groups = cdiv(tiles, kWide);
  for (int item = warp(); item < cdiv(pixels, kRows) * groups; item += warps()) {
    const int row = item / groups * kRows, tile = item % groups * kWide, count = least(tiles - tile, kWide);
    float acc[1][kWide][4] = {};
    accumulate<T>(acc, in, in_stride, row, pixels, weight + tile * kWeightTile, tiles_a_step, count,
                  cdiv(depth, kDepth));
    store<T>(out, out_stride, acc, row, pixels, tile * kColumns, count, after);
  }
}

}  // namespace ghost::cuda
