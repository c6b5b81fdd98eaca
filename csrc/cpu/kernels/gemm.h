// Matrix products, whatever their numbers are: register tiles of rows x vectors over packed panels of B.
//
// Included by kernel sources only; all of it has internal linkage, as simd.h says.
#pragma once
#include <type_traits>

#include "gemm_rows.h"
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::Gemm;
using ghost::kMostRuns;
using ghost::kPanel;

constexpr bool kMany = kRegisters >= 32;
constexpr bool kTails = kLanes > 8;  // vectors of 8 for the columns that are left of a multiple of 16
using Tail = Vec<kTails ? 8 : kLanes>;

// Rows of a register tile of so many vectors, whole and half ones: what the registers hold beside B and a broadcast. Of
// half a vector 14 are enough to hide the latency of a sum.
constexpr int tile_rows(int whole, int half) {
  const int vectors = whole + half, rows = (kRegisters - 1 - vectors) / vectors;
  if (!kMany) return rows >= 12 ? 12 : rows;
  if (!whole) return 14;
  return rows >= 28 ? 28 : rows >= 14 ? 14 : rows >= 8 ? 8 : rows;
}

// Rows of A and columns of A that stay in cache while all panels pass over them. Sums over more columns than that are
// taken in two levels, through C, which keeps their rounding errors small too.
constexpr int64_t kBlockRows = kMany ? 112 : 96, kBlockColumns = 256;
constexpr int64_t kMostBlockRows = kBlockRows * 3 / 2;  // fewer than these are not cut

constexpr int64_t kFinishedRows = 48;  // of a tile of C, at least, so that a call is little beside them

// How many columns the next register tile takes of those that are left, a multiple of 8.
GHOST_INLINE int64_t tile_columns(int64_t left) {
  constexpr int64_t kTwo = 2 * kLanes;  // of 16 on AVX-512, of 8 on AVX2
  if (left > kTwo + 8) return kTwo;
  return left > 8 && kLanes < 8 ? kTwo : left;
}

// Streams of B under one tile: a panel each, at this tile's first column, with their distances from row to row.
struct Streams {
  const float* at[3];  // each [rows of B x columns], row[i] floats from row to row
  int64_t row[3];
  bool packed;
};

GHOST_INLINE void set_column(const Gemm& all, Block& g, int64_t n) {
  if (!g.finish) return;
  g.c_column = n, g.finish_columns = (all.c_padded && !g.finish->affine.added ? ghost::by_eight(all.n) : all.n) - n;
}
// Finishes some of the block's rows under a tile of so many columns, which are at c.
__attribute__((noinline)) void finish_tile(const Block& g, int64_t row, int64_t rows, int64_t columns, float* c,
                                           int64_t c_row) {
  ghost::Affine affine = g.finish->affine;
  if (affine.slope) affine.slope += g.c_column;
  if (affine.added) affine.added += (g.c_first + row) * affine.added_pixel + g.c_column;
  g.finish->apply(c, c_row, affine, c, c_row, rows, columns < g.finish_columns ? columns : g.finish_columns);
}

// What is known here of the distances between rows of panels and columns of A: nothing; that they are as they mostly
// are; or that, and that rows of A are in groups.
enum class Shape { loose, tight, grouped };

// Of panel i under a tile of `columns`: the distance between its rows.
constexpr int64_t tight_row(int i, int columns) { return columns - i * kPanel < kPanel ? 8 : kPanel; }

// How a product multiplies: `broadcast` reads at `a` what A gives for a row of B, once for all vectors w of that row,
// and `multiply` adds their product to v; narrow vectors take the first lanes. Such a row stands for kColumns columns
// of A, which are kFloats floats there. No tile has more than kMostRows rows.
struct Plain {
  static constexpr int kColumns = 1, kFloats = 1, kMostRows = 28;
  template <class V>
  GHOST_INLINE typename V::T broadcast(const char* a) {
    float x;
    std::memcpy(&x, a, sizeof x);
    return V::set(x);
  }
  template <class V, class X>
  GHOST_INLINE typename V::T multiply(X x, typename V::T w, typename V::T v) {
    return V::fma(first_lanes<V::lanes>(x), w, v);
  }
};

// Rows of C, `row` to `limit`, MR at a time, as far as these are whole; returns the first that is left. A tile of C is
// [MR x kColumns], c_row floats from row to row; `bias` is [kColumns], or null. `c` is C's row 0 at the tile's columns.
template <class M, int MR, int NV, int NH, Shape kShape>
__attribute__((noinline)) int64_t tiles(const Block& g, int64_t row, int64_t limit, const Streams& b, const float* bias,
                                        float* c, int64_t c_row) {
  constexpr int kColumns = NV * kLanes + NH * 8, kStreams = (kColumns + kPanel - 1) / kPanel;
  constexpr int kFetches = (MR + 15) / 16;  // with each row of B
  const bool fetches_ahead = g.ahead && g.ahead->at && g.ahead->at < g.ahead->end;
  const char* ahead = fetches_ahead ? g.ahead->at : (const char*)b.at[0];
  int64_t ahead_step = fetches_ahead ? g.ahead->step * M::kColumns : 0, next = 0;
  constexpr bool kTight = kShape == Shape::tight || (kShape == Shape::grouped && kLanes >= 8);
  const int64_t a_col = kTight ? 1 : g.a_col, row0 = kTight ? tight_row(0, kColumns) : b.row[0],
                row1 = kTight ? tight_row(1, kColumns) : b.row[1], row2 = kTight ? tight_row(2, kColumns) : b.row[2];
  int64_t finished = row;
  for (; row + MR <= limit; row += MR) {
    Full::T v[MR][NV ? NV : 1];  // sums: [MR x NV] vectors
    Tail::T h[MR];               // and [MR] of half the width
    if (!fetches_ahead) {        // the first rows of tiles fetch a panel each
      const bool fetches = next < 2 && g.next[next];
      ahead = (const char*)(fetches ? g.next[next] : b.at[0]);
      ahead_step = fetches ? kPanel * (int64_t)sizeof(float) / kFetches : 0, next++;
    }
    float* out = c + place_in_c(g, row, c_row);
#pragma GCC unroll 28
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 3
      for (int j = 0; j < NV; j++) v[i][j] = bias ? Full::load(bias + j * kLanes) : Full::zero();
      if (NH) h[i] = bias ? Tail::load(bias + NV * kLanes) : Tail::zero();
    }
    const float *b0 = b.at[0], *b1 = b.at[1], *b2 = b.at[2];
    const float* const origin = row_of(g, row);
    const auto add_products = [&](auto a) __attribute__((always_inline)) {
      using Rows = decltype(a);
      for (int64_t r = 0; r < g.run_count; r++) {
        Rows::start(a, origin + g.runs[r].offset);
        for (int64_t k = g.runs[r].count; k > 0; k -= M::kFloats) {
          const float* const at[3] = {b0, b1, b2};
          Full::T w[NV ? NV : 1];
          Tail::T u;
#pragma GCC unroll 3
          for (int j = 0; j < NV; j++) w[j] = Full::load(at[j * kLanes / kPanel] + j * kLanes % kPanel);
          if (NH) u = Tail::load(at[NV * kLanes / kPanel]);
          Rows::hide(a);
#pragma GCC unroll 28
          for (int i = 0; i < MR; i++) {
            using Widest = std::conditional_t<NV != 0, Full, Tail>;  // one broadcast: between registers it is slow
            const auto x = M::template broadcast<Widest>(Rows::at(a, i));
            if constexpr (NV != 0)
#pragma GCC unroll 3
              for (int j = 0; j < NV; j++) v[i][j] = M::template multiply<Full>(x, w[j], v[i][j]);
            if constexpr (NH != 0) h[i] = M::template multiply<Tail>(x, u, h[i]);
          }
#pragma GCC unroll 2
          for (int i = 0; i < kFetches; i++) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += ahead_step;
          }
          Rows::step(a, M::kFloats * a_col * sizeof(float));
          b0 += row0;
          if (kStreams > 1) b1 += row1;
          if (kStreams > 2) b2 += row2;
        }
      }
    };
    if (kShape == Shape::grouped && rows_in_line(g, row) < MR)
      add_products(RowTable<MR>(g, row));
    else
      add_products(RowPointers<MR>(g, row));
    const auto put = [&](const auto& far) __attribute__((always_inline)) {  // far(i): of row i of the tile in C
      if (g.accumulate) {
#pragma GCC unroll 28
        for (int i = 0; i < MR; i++) {
#pragma GCC unroll 3
          for (int j = 0; j < NV; j++) v[i][j] += Full::load(out + far(i) + j * kLanes);
          if (NH) h[i] += Tail::load(out + far(i) + NV * kLanes);
        }
      }
      const bool relu = g.relu;
#pragma GCC unroll 28
      for (int i = 0; i < MR; i++) {
#pragma GCC unroll 3
        for (int j = 0; j < NV; j++)
          Full::store(out + far(i) + j * kLanes, relu ? Full::max(Full::zero(), v[i][j]) : v[i][j]);
        if (NH) Tail::store(out + far(i) + NV * kLanes, relu ? Tail::max(Tail::zero(), h[i]) : h[i]);
      }
    };
    if (kShape == Shape::grouped && g.c_group && rows_in_line(g, row) < MR) {
      int64_t table[MR], at = 0, line = rows_in_line(g, row);
      for (int i = 0; i < MR; i++) {
        table[i] = at, at += c_row;
        if (--line == 0) at += g.c_group - g.width * c_row, line = g.width;
      }
      put([&](int i) { return table[i]; });
    } else {
      put([&](int i) { return i * c_row; });
    }
    if (g.finish && (row + MR - finished >= kFinishedRows || row + 2 * MR > limit)) {
      finish_tile(g, finished, row + MR - finished, kColumns, c + finished * c_row, c_row);
      finished = row + MR;
    }
  }
  if (fetches_ahead) g.ahead->at = ahead;
  return row;
}

// All rows of one tile's columns. What is left of a multiple of MR is, where the tiles are low, spread over tiles that
// are a row less high (49 rows are four tiles of 6 and five of 5), else taken by tiles half as high.
template <class M, int MR, int NV, int NH, Shape kShape>
GHOST_INLINE void column(const Block& g, int64_t row, const Streams& b, const float* bias, float* c, int64_t c_row) {
  const int64_t full = (g.rows - row) / MR, rest = (g.rows - row) % MR;
  if constexpr (!kMany && MR > 2)
    if (rest && full >= MR - 1 - rest) {
      row = tiles<M, MR, NV, NH, kShape>(g, row, row + (full + 1 - (MR - rest)) * MR, b, bias, c, c_row);
      tiles<M, MR - 1, NV, NH, kShape>(g, row, g.rows, b, bias, c, c_row);
      return;
    }
  if constexpr (kMany && MR == 14) {  // tiles of 7 and 8 rows, if that leaves no rest
    const int64_t odd = rest % 2, even = odd ? (rest + 7) % 14 : rest, eights = even < 8 ? even : even - 7;
    if (rest && g.rows - row >= 7 * odd + 8 * eights) {
      row = tiles<M, 7, NV, NH, kShape>(g, row, row + 7 * odd, b, bias, c, c_row);
      row = tiles<M, 8, NV, NH, kShape>(g, row, row + 8 * eights, b, bias, c, c_row);
    }
  }
  row = tiles<M, MR, NV, NH, kShape>(g, row, g.rows, b, bias, c, c_row);
  if constexpr (MR > 1)
    if (row < g.rows) column<M, MR / 2, NV, NH, kShape>(g, row, b, bias, c, c_row);
}

template <class M, int NV, int NH>
void column_of(const Block& g, const Streams& b, const float* bias, float* c, int64_t c_row) {
  constexpr int kRows = tile_rows(NV, NH) < M::kMostRows ? tile_rows(NV, NH) : M::kMostRows;
  if (g.width)
    column<M, kRows, NV, NH, Shape::grouped>(g, 0, b, bias, c, c_row);
  else if (b.packed && g.a_col == 1 && kLanes >= 8)
    column<M, kRows, NV, NH, Shape::tight>(g, 0, b, bias, c, c_row);
  else
    column<M, kRows, NV, NH, Shape::loose>(g, 0, b, bias, c, c_row);
}

template <class M>
void tile_product(const Block& g, int64_t columns, const Streams& b, const float* bias, float* c, int64_t c_row) {
  const int64_t vectors = columns / kLanes;
  if constexpr (kTails) {
    if (columns % kLanes) {
      if (vectors == 2) return column_of<M, 2, 1>(g, b, bias, c, c_row);
      if (vectors == 1) return column_of<M, 1, 1>(g, b, bias, c, c_row);
      return column_of<M, 0, 1>(g, b, bias, c, c_row);
    }
  }
  if constexpr (kLanes == 8)
    if (vectors == 3) return column_of<M, 3, 0>(g, b, bias, c, c_row);
  if (vectors == 2) return column_of<M, 2, 0>(g, b, bias, c, c_row);
  column_of<M, 1, 0>(g, b, bias, c, c_row);
}

// The last columns where C has no room for its padding: through a buffer, a few rows at a time.
template <class M>
void ragged_product(const Block& g, int64_t columns, const Streams& b, const float* bias, float* c, int64_t c_row,
                    int64_t valid) {
  constexpr int64_t kRows = 28;
  float buffer[kRows * (2 * kLanes + 8)];  // [kRows x columns]
  for (int64_t row = 0; row < g.rows; row += kRows) {
    Block part = g;
    skip_rows(part, row);
    if (part.rows > kRows) part.rows = kRows;
    part.finish = nullptr, part.c_group = 0;
    if (g.accumulate)
      for (int64_t i = 0; i < part.rows; i++)
        std::memcpy(buffer + i * columns, c + place_in_c(g, row + i, c_row), valid * sizeof(float));
    tile_product<M>(part, columns, b, bias, buffer, columns);
    for (int64_t i = 0; i < part.rows; i++)
      std::memcpy(c + place_in_c(g, row + i, c_row), buffer + i * columns, valid * sizeof(float));
    if (g.finish) finish_tile(g, row, part.rows, valid, c + row * c_row, c_row);
  }
}

// One row over four panels at once: with fewer, each sum would wait for the one before. `b` is four panels, each
// [rows of B x kPanel], `stride` floats from one to the next; `bias` and `c` are [4 * kPanel].
template <class M>
void four_panels(const Block& g, const float* b, int64_t stride, const float* bias, float* c) {
  constexpr int kVectors = kPanel / kLanes;
  Full::T v[4][kVectors];
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) v[p][j] = bias ? Full::load(bias + p * kPanel + j * kLanes) : Full::zero();
  for (int64_t r = 0; r < g.run_count; r++) {
    const float* a = row_of(g, 0) + g.runs[r].offset;
    for (int64_t k = g.runs[r].count; k > 0; k -= M::kFloats, a += M::kFloats * g.a_col, b += kPanel) {
      const auto x = M::template broadcast<Full>((const char*)a);
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++)
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; j++)
          v[p][j] = M::template multiply<Full>(x, Full::load(b + p * stride + j * kLanes), v[p][j]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) {
      float* out = c + p * kPanel + j * kLanes;
      const Full::T sum = g.accumulate ? v[p][j] + Full::load(out) : v[p][j];
      Full::store(out, g.relu ? Full::max(Full::zero(), sum) : sum);
    }
  if (g.finish) finish_tile(g, 0, 1, 4 * kPanel, c, 0);
}

// Where B is: `depth` rows of it, of which a block begins at row `first`.
struct Source {
  const float* b;  // [depth x n_end]; packed: the panel of column n on is b + n * depth, [depth x kPanel or 8]
  int64_t b_row;   // 0: packed panels
  int64_t depth, first;
  int64_t n_end;  // columns, padded
};

GHOST_INLINE Streams streams_under(const Source& s, int64_t n, int64_t columns) {
  Streams b{};
  b.packed = !s.b_row;
  for (int64_t at = n, i = 0; at < n + columns; at = at / kPanel * kPanel + kPanel, i++) {
    const int64_t panel = at / kPanel * kPanel;
    b.row[i] = s.b_row ? s.b_row : s.n_end - panel < kPanel ? 8 : kPanel;
    b.at[i] = s.b + (s.b_row ? at : panel * s.depth + at % kPanel) + s.first * b.row[i];
  }
  return b;
}

GHOST_INLINE const float* bias_at(const Gemm& all, const Block& g, int64_t n) {
  return all.bias && !g.accumulate ? all.bias + n : nullptr;
}

// The columns of a block of one row over packed panels, as far as four of them are full. Returns how many these are.
template <class M>
int64_t row_product(const Gemm& all, const Block& g, const Source& s, float* c) {
  int64_t n = 0;
  Block part = g;
  for (; n + 4 * kPanel <= all.n; n += 4 * kPanel) {
    set_column(all, part, n);
    four_panels<M>(part, s.b + n * s.depth + s.first * kPanel, kPanel * s.depth, bias_at(all, g, n), c + n);
  }
  return n;
}

// All columns of a block from n on, a tile at a time; streams(n, columns) says what of B is under it.
template <class M, class F>
GHOST_INLINE void block_product(const Gemm& all, const Block& g, int64_t n, float* c, const F& streams,
                                const Source* packed = nullptr) {
  const int64_t n_end = ghost::by_eight(all.n);
  Block part = g;
  for (int64_t columns; n < all.n; n += columns) {
    columns = tile_columns(n_end - n);
    const Streams b = streams(n, columns);
    const float* bias = bias_at(all, g, n);
    set_column(all, part, n);
    for (int64_t i = 0; i < 2 && packed; i++) {
      const int64_t at = n + columns + i * kPanel;
      part.next[i] = at < n_end ? streams_under(*packed, at, 8).at[0] : nullptr;
    }
    if (n + columns <= all.n || all.c_padded)
      tile_product<M>(part, columns, b, bias, c + n, all.c_row);
    else
      ragged_product<M>(part, columns, b, bias, c + n, all.c_row, all.n - n);
  }
}

// A block over B where it is.
template <class M>
GHOST_INLINE void source_product(const Gemm& all, const Block& g, const Source& s, float* c) {
  const int64_t done = g.rows == 1 && !s.b_row ? row_product<M>(all, g, s, c) : 0;
  block_product<M>(
      all, g, done, c, [&](int64_t n, int64_t columns) { return streams_under(s, n, columns); },
      s.b_row ? nullptr : &s);
}

// The runs that make up columns first to first + count of A.
int64_t cut_runs(const Run* runs, int64_t run_count, int64_t a_col, int64_t first, int64_t count, Run* out) {
  int64_t found = 0;
  for (int64_t r = 0; r < run_count && count > 0; first -= runs[r].count, r++) {
    if (first >= runs[r].count) continue;
    const int64_t skip = first > 0 ? first : 0, left = runs[r].count - skip, take = left < count ? left : count;
    out[found++] = {runs[r].offset + skip * a_col, take};
    count -= take;
  }
  return found;
}

// Runs f(block, its columns of A, its source, where its C begins) over the blocks of a product with kColumns columns of
// A to a row of B. With `kAllRows` rows in groups are one block: of the map that they are of, fewer floats are in
// cache.
template <int kColumns, bool kAllRows, class F>
GHOST_INLINE void over_blocks(const Gemm& all, const F& f) {
  constexpr int64_t kMost = kBlockColumns / kColumns;
  const Run whole{0, all.k};
  const Run* runs = all.runs ? all.runs : &whole;
  const int64_t run_count = all.runs ? all.run_count : 1;
  const auto rows_of_b = [](int64_t columns) { return (columns + kColumns - 1) / kColumns; };
  const int64_t depth = rows_of_b(all.k), panel = all.b_rows ? rows_of_b(all.b_rows) : depth,
                blocks = depth > kMost ? (depth + kMost - 1) / kMost : 1;
  for (int64_t row = 0, rows; row < all.rows; row += rows) {
    rows = all.rows - row < kMostBlockRows || (kAllRows && all.a_width) ? all.rows - row : kBlockRows;
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t first = depth * i / blocks, end = depth * (i + 1) / blocks, left = all.k - first * kColumns;
      const int64_t columns = (end - first) * kColumns < left ? (end - first) * kColumns : left;
      Run mine[kMostRuns];
      const int64_t count = cut_runs(runs, run_count, all.a_col, first * kColumns, columns, mine);
      Block g{all.a,
              all.a_row,
              all.a_col,
              all.rows,
              mine,
              count,
              all.accumulate || i > 0,
              all.relu && i == blocks - 1,
              all.ahead,
              0,
              all.a_width,
              all.a_group,
              i == blocks - 1 ? all.finish : nullptr};
      skip_rows(g, row);
      g.rows = rows, g.c_group = all.c_group;
      f(g, columns, Source{all.b, all.b_row, panel, rows_of_b(all.b_first) + first, ghost::by_eight(all.n)},
        all.c + row * all.c_row);
    }
  }
}

}  // namespace
