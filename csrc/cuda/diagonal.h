// Depthwise convolutions in half precision, by the warps' products: a tap of eight lanes is a diagonal matrix.
//
// Of a product's 16 pixels eight are side by side in a row of the map. Its inputs are eight lanes of these pixels, and
// of the same pixels one column on, which two diagonals multiply. So the sums are in float32, and an instruction does
// as much as eight multiply-adds of a thread. Where a lane is infinite, the other seven of its product are NaN.
#pragma once
#include "copies.h"

namespace ghost::cuda {

/// What a lane has of a diagonal matrix of 8 x 8: a number of its column, or two zeros.
struct Diagonal {
  int column;
  uint32_t lower, upper;  // the bytes of it: for the first and the second number of a word

  GHOST_DEVICE Diagonal() : column(lane() >> 2) {
    const bool there = (lane() & 3) == column >> 1, second = column & 1;
    lower = !there ? 0x4444 : second ? 0x1044 : 0x4410, upper = !there ? 0x4444 : second ? 0x3244 : 0x4432;
  }
  GHOST_DEVICE uint32_t of(uint32_t word, int number) const { return pick_bytes(word, number ? upper : lower); }
};

/// The tiles of a warp: each is R rows x kGroup columns of eight lanes, and two are computed at once. A lane has the
/// address of a pixel of one of them, where it reads and where it writes.
struct Tiles {
  struct Side {
    int row, ring, pitch, rows, slot, shift;  // slot: of the first row; shift: bytes to this lane's first column

    GHOST_DEVICE Side(const Map& m, int row, int columns)
        : row(m.row),
          ring(m.ring),
          pitch(m.pitch),
          rows(m.rows.value),
          slot(slot_of(m, row)),
          shift(columns * m.pitch) {}
    GHOST_DEVICE int at(int down, int columns) const {
      const int n = slot + down;
      return (n >= rows ? n - rows : n) * row + columns * pitch + shift;
    }
  };
  Side in, out;
  Divisor groups;
  int R, stride, high, wide, count, second;  // high: rows of results; wide: columns from this lane's first one on;
                                             // second: whether it has the address of the second tile of two

  template <class T>
  GHOST_DEVICE Tiles(const Work<T>& w, const Stage& g, int R, int kernel, int stride)
      : Tiles(w, g, R, kernel, stride, w.rows(w.map(g.out)), w.columns(g.out), lane()) {}

  struct Places {
    int from, to, rows;  // rows: that are there of a result of this lane
  };
  /// Where no other tile follows, the last one is repeated.
  GHOST_DEVICE Places operator[](int pair) const {
    const int tile = least(2 * pair + second, count - 1), strip = divide(tile, groups);
    const int column = (tile - strip * groups.value) * kGroup, row = strip * R;
    return {in.at(row * stride, column * stride), out.at(row, column), column < wide ? high - row : 0};
  }

 private:
  template <class T>
  GHOST_DEVICE Tiles(const Work<T>& w, const Stage& g, int R, int kernel, int stride, const Rows& rows,
                     const Columns& made, int lane)
      : in(w.map(g.in), rows.begin * stride - kernel / 2,
           (made.begin + (lane & 7)) * stride - kernel / 2 - w.columns(g.in).origin + w.map(g.in).halo),
        out(w.map(g.out), rows.begin, made.begin + (lane & 7) - made.origin + w.map(g.out).halo),
        groups(made.groups),
        R(R),
        stride(stride),
        high(rows.size()),
        wide(made.count.value - (lane & 7)),
        count(made.groups.value * cdiv(rows.size(), R)),
        second((lane >> 3) & 1) {}
};

/// The lane of a depthwise weight whose taps a lane of a warp has first.
GHOST_DEVICE int first_lane(const Stage& g, const Diagonal& diagonal) {
  return g.parameter + layer_of_blocks() * g.lane_step + diagonal.column;
}

/// Results of a stage are R rows x 16 pixels x 8 lanes at once, by K x K taps at stride S.
template <int K, int S, int R, class T>
GHOST_DEVICE void diagonal_stage(const Work<T>& w, const Stage& g) {
  constexpr int kReadRows = (R - 1) * S + K, kBoth = K / 2;
  static_assert(K % 2 == 1 && R % 2 == 0);
  // Eight pixels two columns apart are in four banks of eight. Four of them, and the four others one column on, are in
  // all: so matrices are read, and then lanes of the others swap what they have of two columns.
  constexpr bool kAcross = S == 2;
  const bool swaps = kAcross && (lane() & 16);
  const Tiles tiles(w, g, R, K, S);
  const auto &in = tiles.in, &out = tiles.out;
  const Diagonal diagonal;
  const T* const weights = opaque(w.a.matrices + g.weight + first_lane(g, diagonal) * taps_of_lane(K));
  const float* const biases = opaque(w.a.vectors + g.bias + layer_of_blocks() * g.lane_step + 2 * (lane() & 3));
  const int across = kAcross ? (lane() >> 2) & 1 : 0, column = (lane() >> 4) ^ across;
  const int to_last = (K - 1 - column) * in.pitch;
  const unsigned char* const map = w.at(w.map(g.in), g.in_lane) + column * in.pitch;
  unsigned char *const result = w.at(w.map(g.out), g.out_lane), *const spare = w.spare();
  const int later = lane() >> 4;  // of two rows of results
  uint32_t taps[K][K];
  float bias[4];
  int bytes = 0;
  for_share(
      w, cdiv(g.lanes, kOctet), cdiv(tiles.count, 2),
      [&](int outer) {
        const int first = outer * kOctet;
        const auto* const from = opaque(reinterpret_cast<const FourHalves*>(weights + first * taps_of_lane(K)));
        bytes = first * int{sizeof(T)};
#pragma unroll
        for (int i = 0; i < K * K; i += 4) {
          const auto four = constant(from + i / 4);
#pragma unroll
          for (int j = 0; j < 4 && i + j < K * K; j++)
            taps[(i + j) / K][(i + j) % K] = opaque(diagonal.of(four.bits[j / 2], j % 2));
        }
        const auto pair = constant(reinterpret_cast<const Pair<float>*>(biases + first));
        bias[0] = pair.first, bias[1] = pair.second, bias[2] = other_register(pair.first),
        bias[3] = other_register(pair.second);
      },
      [&](int inner) {
        const auto places = tiles[inner];
        int at = places.from + bytes;
        float sums[R][4];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int e = 0; e < 4; e++) sums[r][e] = bias[e];
#pragma unroll
        for (int y = 0; y < kReadRows; y++, at = next_row(at, in.row, in.ring)) {
          uint32_t both[kBoth][4], last[2];
#pragma unroll
          for (int x = 0; x < kBoth; x++) {
            uint32_t read[4];
            load_matrices(read, map + at + 2 * x * in.pitch);
#pragma unroll
            for (int i = 0; i < 4; i++) both[x][i] = swaps ? read[i ^ 2] : read[i];
          }
          load_matrices(last, map + at + to_last);
#pragma unroll
          for (int r = 0; r < R; r++) {
            const int dy = y - r * S;
            if (dy < 0 || dy >= K) continue;
#pragma unroll
            for (int x = 0; x < kBoth; x++)
              multiply_add(T{}, sums[r], both[x], taps[dy][2 * x], taps[dy][2 * x + 1], sums[r]);
            multiply_add(T{}, sums[r], last, taps[dy][K - 1], sums[r]);
          }
        }
        uint32_t words[R][2];
        bound<T>(words, sums, g.low, g.high);
        int to = next_row(places.to, later * out.row, out.ring) + bytes;
#pragma unroll
        for (int r = 0; r < R; r += 2, to = next_row(to, 2 * out.row, out.ring))
          store_matrices(r + later < places.rows ? result + to : spare, words[r][0], words[r][1], words[r + 1][0],
                         words[r + 1][1]);
      });
}

/// The same for any size and stride.
template <class T>
GHOST_DEVICE void diagonal_loops(const Work<T>& w, const Stage& g) {
  const Tiles tiles(w, g, 1, g.kernel, g.stride);
  const auto& in = tiles.in;
  const Diagonal diagonal;
  const int apart = taps_of_lane(g.kernel);
  const T* const weights = w.a.matrices + g.weight + first_lane(g, diagonal) * apart;
  const float* const biases = w.a.vectors + g.bias + layer_of_blocks() * g.lane_step;
  const unsigned char* const map = w.at(w.map(g.in), g.in_lane);
  unsigned char *const result = w.at(w.map(g.out), g.out_lane), *const spare = w.spare();
  const int own = lane();
  int first = 0;
  for_share(
      w, cdiv(g.lanes, kOctet), cdiv(tiles.count, 2), [&](int outer) { first = outer * kOctet; },
      [&](int inner) {
        const auto places = tiles[inner];
        const int bytes = first * int{sizeof(T)};
        int at = places.from + bytes;
        const auto bias = constant(reinterpret_cast<const Pair<float>*>(biases + first + 2 * (own & 3)));
        float sums[1][4] = {{bias.first, bias.second, bias.first, bias.second}};
        const auto* const words = reinterpret_cast<const uint32_t*>(weights + first * apart);
        int tap = 0;
#pragma unroll 1
        for (int dy = 0; dy < g.kernel; dy++, at = next_row(at, in.row, in.ring)) {
#pragma unroll 1
          for (int dx = 0; dx < g.kernel; dx++, tap++) {
            uint32_t a[2];
            load_matrices(a, map + at + dx * in.pitch);
            multiply_add(T{}, sums[0], a, diagonal.of(constant(words + tap / 2), tap % 2), sums[0]);
          }
        }
        uint32_t made[1][2];
        bound<T>(made, sums, g.low, g.high);
        store_matrices(own < 16 && places.rows > 0 ? result + places.to + bytes : spare, made[0][0], made[0][1], 0, 0);
      });
}

/// By tiles of as many rows as the planner says.
template <int K, int S, class T>
GHOST_DEVICE void diagonal_rows(const Work<T>& w, const Stage& g) {
  if constexpr (has_rows(kHighTile, K)) {
    if (g.rows == kHighTile) return diagonal_stage<K, S, kHighTile>(w, g);
  }
  diagonal_stage<K, S, kLowTile>(w, g);
}

/// A depthwise convolution of a map.
template <class T>
GHOST_DEVICE void diagonal(const Work<T>& w, const Stage& g) {
  switch (8 * g.kernel + g.stride) {
    case 8 * 3 + 1:
      return diagonal_rows<3, 1>(w, g);
    case 8 * 3 + 2:
      return diagonal_rows<3, 2>(w, g);
    case 8 * 5 + 1:
      return diagonal_rows<5, 1>(w, g);
    case 8 * 5 + 2:
      return diagonal_rows<5, 2>(w, g);
    default:
      return diagonal_loops(w, g);
  }
}

}  // namespace ghost::cuda
