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

/// The weights of C tiles of outputs for 16 inputs. Past the last output other weights are read, or the zeros with
/// which the buffer ends; what is made of them is not stored.
template <int C, class T>
GHOST_DEVICE void load_weights(FourHalves (&b)[C], const T* weight) {
#pragma unroll
  for (int j = 0; j < C; j++) b[j] = constant(reinterpret_cast<const FourHalves*>(weight + j * kWeightTile));
}

/// sums = c + 16 inputs of R tiles of pixels by C tiles of outputs; `a`: what a lane reads of each tile (ldmatrix); `c`
/// has what each sum is added to, or what those of a tile of outputs begin with.
template <int R, int C, int N, class T>
GHOST_DEVICE void multiply_tiles(float (&sums)[R * C][4], const unsigned char* map, const int (&a)[R],
                                 const FourHalves (&b)[C], const float (&c)[N][4], T) {
  uint32_t fragments[R][4];
#pragma unroll
  for (int i = 0; i < R; i++) load_matrices(fragments[i], map + a[i]);
#pragma unroll
  for (int i = 0; i < R; i++)
#pragma unroll
    for (int j = 0; j < C; j++)
      multiply_add(T{}, sums[i * C + j], fragments[i], b[j].bits[0], b[j].bits[1], c[(i * C + j) % N]);
}

/// The same with the first eight inputs only: the map has no more lanes.
template <int R, int C, int N, class T>
GHOST_DEVICE void multiply_tail(float (&sums)[R * C][4], const unsigned char* map, const int (&a)[R],
                                const FourHalves (&b)[C], const float (&c)[N][4], T) {
  uint32_t fragments[R][2];
#pragma unroll
  for (int i = 0; i < R; i++) load_matrices(fragments[i], map + a[i]);
#pragma unroll
  for (int i = 0; i < R; i++)
#pragma unroll
    for (int j = 0; j < C; j++) multiply_add(T{}, sums[i * C + j], fragments[i], b[j].bits[0], c[(i * C + j) % N]);
}

/// How a warp has its weights: those of 16 inputs once for all its pixels, or again for each tile, or so
/// kAhead x 16 inputs before they are needed.
enum class Weights { kept, read, ahead };

/// R x C tiles of 16 pixels x 8 outputs at once.
///
/// Where there are fewer pixels than in a tile, the last one is computed several times, and written so.
template <int R, int C, Weights kWeights, class T>
GHOST_DEVICE void matrix_product(const Work<T>& w, const Stage& g) {
  constexpr bool kKeep = kWeights == Weights::kept;
  constexpr bool kReadsAhead = kWeights == Weights::ahead;
  static_assert(kKept == 1);
  const Map &in = w.map(g.in), &out = w.map(g.out);
  const Rows rows = w.rows(out);
  const Pixels<T> from(w, g.in, rows, g.out), to(w, g.out, rows, g.out);
  const int count = from.count(), own = lane() & 15, part = lane() >> 4;
  const T* const weights = opaque(w.a.matrices + g.weight + layer_of_blocks() * g.weight_step + lane() * 4);
  const float* const biases = opaque(w.a.vectors + g.bias + layer_of_blocks() * g.lane_step + fragment_column());
  const unsigned char* const map = w.at(in, g.in_lane) + part * 16;
  unsigned char *const result = w.at(out, g.out_lane) + part * 16, *const spare = w.spare();
  const Divisor columns = from.columns.count;
  int tile = 0, there = 0;
  float bias[C][4];
  FourHalves kept[C];
  // Once for all pixels of a tile of outputs; where weights are read ahead, for each tile, since registers are few. The
  // first products add them to what they make, from four registers each; read ahead, sums begin with them.
  const auto read_bias = [&](int none = 0) {
    const float* const first = opaque(biases + tile * kColumns + none);
#pragma unroll
    for (int j = 0; j < C; j++) {
      const auto pair = constant(reinterpret_cast<const Pair<float>*>(first + j * kColumns));
      bias[j][0] = pair.first, bias[j][1] = pair.second;
      bias[j][2] = kKeep ? other_register(pair.first) : pair.first;
      bias[j][3] = kKeep ? other_register(pair.second) : pair.second;
    }
  };
  for_share(
      w, g.items.value, cdiv(count, kRows * R),
      [&](int outer) {
        tile = outer * C, there = least(g.lanes / kColumns - tile, C);
        if constexpr (!kReadsAhead) read_bias();
        if constexpr (kKeep) load_weights(kept, opaque(weights + tile * kWeightTile));
      },
      [&](int inner) {
        int a[R], places[R];
#pragma unroll
        for (int i = 0; i < R; i++) {
          const int p = least((inner * R + i) * kRows + own, count - 1), row = divide(p, columns),
                    column = p - row * columns.value;
          a[i] = from.at(row, column), places[i] = to.at(row, column) + tile * 16;
        }
        float sums[R * C][4];
        if constexpr (kKeep) {
          if (g.tail)
            multiply_tail<R, C>(sums, map, a, kept, bias, T{});
          else
            multiply_tiles<R, C>(sums, map, a, kept, bias, T{});
        } else {
          constexpr int kBuffers = kReadsAhead ? kAhead + 1 : 1;
          const int depth = g.depth - g.tail;  // 1 at least; read ahead, more than kAhead
          // 0, of which the compiler does not know it: else it reads weights before the loop, for which there are not
          // registers enough.
          const int none = kReadsAhead ? a[0] & own_zero() : 0;
          const T* const own_weights = opaque(weights + tile * kWeightTile + none);
          const T* weight = own_weights;
          FourHalves b[kBuffers][C];
          const auto read = [&](int k) { load_weights(b[k % kBuffers], weight), weight = opaque(weight + g.apart); };
#pragma unroll
          for (int k = 0; k + 1 < kBuffers; k++) read(k);
          const unsigned char* at = map;
          if constexpr (!kReadsAhead) {
            read(0), at += kDepth * 2;
            float first[C][4];
#pragma unroll
            for (int j = 0; j < C; j++)
#pragma unroll
              for (int e = 0; e < 4; e++) first[j][e] = e < 2 ? bias[j][e] : other_register(bias[j][e - 2]);
            multiply_tiles<R, C>(sums, map, a, b[0], first, T{});
          } else {
            read_bias(none);
#pragma unroll
            for (int i = 0; i < R * C; i++)
#pragma unroll
              for (int e = 0; e < 4; e++) sums[i][e] = bias[i % C][e];
          }
#pragma unroll 1
          for (int left = depth - !kReadsAhead; left > 0; left -= kBuffers) {
#pragma unroll
            for (int k = 0; k < kBuffers; k++, at += kDepth * 2) {
              if (k > 0 && left <= k) break;
              if (kBuffers == 1 || left >= k + kBuffers) read(k + kBuffers - 1);
              multiply_tiles<R, C>(sums, at, a, b[k], sums, T{});
            }
          }
#pragma unroll 1
          for (int i = 0; i < g.tail; i++) {  // at most once: a branch, where an `if` would be instructions for all
            load_weights(b[0], own_weights + depth * g.apart);
            multiply_tail<R, C>(sums, map + depth * kDepth * 2, a, b[0], sums, T{});
          }
        }
        uint32_t words[R * C][2];
        bound<T>(words, sums, g.low, g.high);
#pragma unroll
        for (int j = 0; j < C; j += 2) {
          const bool wanted = j + part < there;
#pragma unroll
          for (int i = 0; i < R; i++) {
            const auto &left = words[i * C + j], &right = words[i * C + j + 1];
            store_matrices(wanted ? result + places[i] + j * 16 : spare, left[0], left[1], right[0], right[1]);
          }
        }
      });
}

/// In float32, without tensor cores: a lane has what it would have of a warp's product.
template <int R, int C, class T>
GHOST_DEVICE void plain_product(const Work<T>& w, const Stage& g) {
  const Map &in = w.map(g.in), &out = w.map(g.out);
  const Rows rows = w.rows(out);
  const Pixels<T> from(w, g.in, rows, g.out), to(w, g.out, rows, g.out);
  const int count = from.count();
  const float* const weights = w.a.matrices + g.weight + layer_of_blocks() * g.weight_step + fragment_column();
  const float* const biases = w.a.vectors + g.bias + layer_of_blocks() * g.lane_step + fragment_column();
  const unsigned char* const map = w.at(in, g.in_lane);
  unsigned char* const result = w.at(out, g.out_lane + fragment_column());
  const int own = fragment_row(0);
  int tile = 0, there = 0;
  for_share(
      w, g.items.value, cdiv(count, kRows * R),
      [&](int outer) { tile = outer * C, there = least(g.lanes / kColumns - tile, C); },
      [&](int inner) {
        float sums[R][2][C][2];
        int a[R][2];
        const auto pixel_of = [&](int i, int half) { return (inner * R + i) * kRows + own + 8 * half; };
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            a[i][half] = from.at(least(pixel_of(i, half), count - 1));
#pragma unroll
            for (int j = 0; j < C; j++) {
              Pair<float> bias{};
              if (j < there) bias = constant(reinterpret_cast<const Pair<float>*>(biases + (tile + j) * kColumns));
              sums[i][half][j][0] = bias.first, sums[i][half][j][1] = bias.second;
            }
          }
        const float* weight = weights + tile * kWeightTile;
        const unsigned char* at = map;
#pragma unroll 1
        for (int k = 0; k < g.depth; k++, weight += g.apart - kDepth * kColumns) {
#pragma unroll 1
          for (int d = 0; d < kDepth; d++, weight += kColumns, at += 4) {
            Pair<float> b[C];
#pragma unroll
            for (int j = 0; j < C; j++)
              if (j < there) b[j] = constant(reinterpret_cast<const Pair<float>*>(weight + j * kWeightTile));
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
              for (int half = 0; half < 2; half++) {
                const float left = *reinterpret_cast<const float*>(at + a[i][half]);
#pragma unroll
                for (int j = 0; j < C; j++) {
                  if (j >= there) continue;
                  auto& sum = sums[i][half][j];
                  sum[0] = add_product(left, b[j].first, sum[0]), sum[1] = add_product(left, b[j].second, sum[1]);
                }
              }
          }
        }
        const Bounds<T> bounds(g.low, g.high);
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const int p = pixel_of(i, half);
            if (p >= count) continue;
            const int place = to.at(p) + tile * kColumns * 4;
#pragma unroll
            for (int j = 0; j < C; j++)
              if (j < there)
                put(reinterpret_cast<Pair<T>*>(result + place + j * kColumns * 4),
                    bounds(sums[i][half][j][0], sums[i][half][j][1]));
          }
      });
}

template <int R, int C, class T>
GHOST_DEVICE void product_of(const Work<T>& w, const Stage& g) {
  if constexpr (sizeof(T) == 4) return plain_product<R, C>(w, g);
  if constexpr (sizeof(T) == 2) {
    if (g.depth <= kKept) return matrix_product<R, C, Weights::kept>(w, g);
    matrix_product<R, C, Weights::read>(w, g);
  }
}

template <class T>
GHOST_DEVICE void product(const Work<T>& w, const Stage& g) {
  if constexpr (sizeof(T) == 2) {
    if (g.kernel == kAheadTile) return matrix_product<1, 4, Weights::ahead>(w, g);
    if (g.kernel == kTallTile) return product_of<kTallTile, 2>(w, g);
  }
  if (g.kernel == kSmallTile) return product_of<kSmallTile, 2>(w, g);
  product_of<kWideTile, 4>(w, g);
}

}  // namespace ghost::cuda
