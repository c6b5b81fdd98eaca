// Pointwise convolutions as matrix products: register tiles of rows x vectors over packed panels of B.
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::kMostRuns;
using ghost::kPanel;
using ghost::Pack;
using ghost::Pointwise;
using ghost::Run;

constexpr bool kMany = kRegisters >= 32;
constexpr bool kTails = kLanes > 8;  // vectors of 8 for the columns that are left of a multiple of 16
using Tail = Vec<kTails ? 8 : kLanes>;

// Rows of a register tile of so many vectors, whole and half ones: what the registers hold beside B and a broadcast. Of
// half a vector 14 are enough to hide the latency of a sum, and more would keep their addresses on the stack.
constexpr int tile_rows(int whole, int half) {
  const int vectors = whole + half, rows = (kRegisters - 1 - vectors) / vectors;
  if (!kMany) return rows >= 12 ? 12 : rows;
  if (!whole) return 14;
  return rows >= 28 ? 28 : rows >= 14 ? 14 : rows >= 8 ? 8 : rows;
}

// Rows of A and columns of A that stay in cache while all panels pass over them. Sums over more columns than that are
// taken in two levels, through C, which keeps their rounding errors small too.
constexpr int64_t kBlockRows = kMany ? 112 : 96, kBlockColumns = 256;

// How many columns the next register tile takes of those that are left, a multiple of 8.
GHOST_INLINE int64_t tile_columns(int64_t left) {
  constexpr int64_t kTwo = 2 * kLanes;  // of 16 on AVX-512, of 8 on AVX2
  if (left > kTwo + 8) return kTwo;
  return left > 8 && kLanes < 8 ? kTwo : left;
}

// Streams of B under one tile: a panel each, at this tile's first column, with their distances from row to row.
struct Streams {
  const float* at[3];
  int64_t row[3];
  bool packed;
};

// A block of the product: some rows, some of k, all columns.
struct Block {
  const float* a;
  int64_t a_row, a_col, rows;
  const Run* runs;
  int64_t run_count;
  bool accumulate, relu;
  ghost::Ahead* ahead;
};

// Whether panels' rows and A's columns lie as they mostly do, at distances that are known here.
GHOST_INLINE bool is_tight(const Block& g, bool packed) { return packed && g.a_col == 1 && kLanes >= 8; }

// Of panel i under a tile of `columns`: the distance between its rows.
constexpr int64_t tight_row(int i, int columns) { return columns - i * kPanel < kPanel ? 8 : kPanel; }

// Addresses of rows of A, which lie at one distance: seven each from one pointer, by the ways that addresses can add
// up. What is kept for them is opaque to the compiler, which would keep one offset a row, and those on the stack.
constexpr int kRowsOfBase = 7;

template <int MR>
struct Rows {
  static constexpr int kBases = (MR + kRowsOfBase - 1) / kRowsOfBase;
  const char* base[kBases];
  int64_t once, thrice, five_times;  // the distance, bytes

  Rows(const float* a, int64_t row) : once(row * (int64_t)sizeof(float)), thrice(3 * once), five_times(5 * once) {
    for (int j = 0; j < kBases; j++) base[j] = (const char*)a + j * kRowsOfBase * once;
  }
  GHOST_INLINE void hide(Rows& r) {
    asm("" : "+r"(r.once), "+r"(r.thrice), "+r"(r.five_times));
#pragma GCC unroll 4
    for (int j = 0; j < kBases; j++) asm("" : "+r"(r.base[j]));
  }
  GHOST_INLINE float at(const Rows& r, int i) {
    const char* p = r.base[i / kRowsOfBase];
    const int64_t far[] = {0, r.once, 2 * r.once, r.thrice, 4 * r.once, r.five_times, 2 * r.thrice};
    float x;
    std::memcpy(&x, p + far[i % kRowsOfBase], sizeof x);
    return x;
  }
  GHOST_INLINE void step(Rows& r, int64_t bytes) {
#pragma GCC unroll 4
    for (int j = 0; j < kBases; j++) r.base[j] += bytes;
  }
};

template <int MR, int NV, int NH, bool kTight>
__attribute__((noinline)) int64_t tiles(const Block& g, int64_t row, int64_t limit, const Streams& b, const float* bias,
                                        float* c, int64_t c_row) {
  constexpr int kColumns = NV * kLanes + NH * 8, kStreams = (kColumns + kPanel - 1) / kPanel;
  const char* ahead = g.ahead && g.ahead->at ? g.ahead->at : (const char*)b.at[0];
  const int64_t ahead_step = g.ahead && ahead < g.ahead->end ? g.ahead->step : 0;
  const int64_t a_row = g.a_row, a_col = kTight ? 1 : g.a_col, row0 = kTight ? tight_row(0, kColumns) : b.row[0],
                row1 = kTight ? tight_row(1, kColumns) : b.row[1], row2 = kTight ? tight_row(2, kColumns) : b.row[2];
  for (; row + MR <= limit; row += MR) {
    Full::T v[MR][NV ? NV : 1];
    Tail::T h[MR];
    float* out = c + row * c_row;
#pragma GCC unroll 28
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 3
      for (int j = 0; j < NV; j++) v[i][j] = bias ? Full::load(bias + j * kLanes) : Full::zero();
      if (NH) h[i] = bias ? Tail::load(bias + NV * kLanes) : Tail::zero();
    }
    const float *b0 = b.at[0], *b1 = b.at[1], *b2 = b.at[2];
    for (int64_t r = 0; r < g.run_count; r++) {
      Rows<MR> a(g.a + row * a_row + g.runs[r].offset, a_row);
      for (int64_t k = g.runs[r].count; k > 0; k--) {
        const float* const at[3] = {b0, b1, b2};
        Full::T w[NV ? NV : 1];
        Tail::T u;
#pragma GCC unroll 3
        for (int j = 0; j < NV; j++) w[j] = Full::load(at[j * kLanes / kPanel] + j * kLanes % kPanel);
        if (NH) u = Tail::load(at[NV * kLanes / kPanel]);
        Rows<MR>::hide(a);
#pragma GCC unroll 28
        for (int i = 0; i < MR; i++) {
          const Full::T x = Full::set(Rows<MR>::at(a, i));  // one broadcast, from memory: between registers it is slow
#pragma GCC unroll 3
          for (int j = 0; j < NV; j++) v[i][j] = Full::fma(x, w[j], v[i][j]);
          if (NH) h[i] = Tail::fma(NV ? first_lanes<Tail::lanes>(x) : Tail::set(Rows<MR>::at(a, i)), u, h[i]);
        }
#pragma GCC unroll 2
        for (int i = 0; i < (MR + 15) / 16; i++) {
          __builtin_prefetch(ahead, 0, 2);
          ahead += ahead_step;
        }
        Rows<MR>::step(a, a_col * sizeof(float));
        b0 += row0;
        if (kStreams > 1) b1 += row1;
        if (kStreams > 2) b2 += row2;
      }
    }
    if (g.accumulate) {
#pragma GCC unroll 28
      for (int i = 0; i < MR; i++) {
#pragma GCC unroll 3
        for (int j = 0; j < NV; j++) v[i][j] += Full::load(out + i * c_row + j * kLanes);
        if (NH) h[i] += Tail::load(out + i * c_row + NV * kLanes);
      }
    }
    const bool relu = g.relu;
#pragma GCC unroll 28
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 3
      for (int j = 0; j < NV; j++)
        Full::store(out + i * c_row + j * kLanes, relu ? Full::max(Full::zero(), v[i][j]) : v[i][j]);
      if (NH) Tail::store(out + i * c_row + NV * kLanes, relu ? Tail::max(Tail::zero(), h[i]) : h[i]);
    }
  }
  if (g.ahead) g.ahead->at = ahead;
  return row;
}

// All rows of one tile's columns. What is left of a multiple of MR is, where the tiles are low, spread over tiles that
// are a row less high (49 rows are four tiles of 6 and five of 5), else taken by tiles half as high.
template <int MR, int NV, int NH, bool kTight>
GHOST_INLINE void column(const Block& g, int64_t row, const Streams& b, const float* bias, float* c, int64_t c_row) {
  const int64_t full = (g.rows - row) / MR, rest = (g.rows - row) % MR;
  if constexpr (!kMany && MR > 2)
    if (rest && full >= MR - 1 - rest) {
      row = tiles<MR, NV, NH, kTight>(g, row, row + (full + 1 - (MR - rest)) * MR, b, bias, c, c_row);
      tiles<MR - 1, NV, NH, kTight>(g, row, g.rows, b, bias, c, c_row);
      return;
    }
  row = tiles<MR, NV, NH, kTight>(g, row, g.rows, b, bias, c, c_row);
  if constexpr (MR > 1)
    if (row < g.rows) column<MR / 2, NV, NH, kTight>(g, row, b, bias, c, c_row);
}

template <int NV, int NH>
void column_of(const Block& g, const Streams& b, const float* bias, float* c, int64_t c_row) {
  constexpr int kRows = tile_rows(NV, NH);
  if (is_tight(g, b.packed))
    column<kRows, NV, NH, true>(g, 0, b, bias, c, c_row);
  else
    column<kRows, NV, NH, false>(g, 0, b, bias, c, c_row);
}

void tile_product(const Block& g, int64_t columns, const Streams& b, const float* bias, float* c, int64_t c_row) {
  const int64_t vectors = columns / kLanes;
  if constexpr (kTails) {
    if (columns % kLanes) {
      if (vectors == 2) return column_of<2, 1>(g, b, bias, c, c_row);
      if (vectors == 1) return column_of<1, 1>(g, b, bias, c, c_row);
      return column_of<0, 1>(g, b, bias, c, c_row);
    }
  }
  if constexpr (kLanes == 8)
    if (vectors == 3) return column_of<3, 0>(g, b, bias, c, c_row);
  if (vectors == 2) return column_of<2, 0>(g, b, bias, c, c_row);
  column_of<1, 0>(g, b, bias, c, c_row);
}

// The last columns where C has no room for its padding: through a buffer, a few rows at a time.
void ragged_product(const Block& g, int64_t columns, const Streams& b, const float* bias, float* c, int64_t c_row,
                    int64_t valid) {
  constexpr int64_t kRows = 28;
  float buffer[kRows * (2 * kLanes + 8)];
  for (int64_t row = 0; row < g.rows; row += kRows) {
    Block part = g;
    part.rows = g.rows - row < kRows ? g.rows - row : kRows;
    part.a = g.a + row * g.a_row;
    if (g.accumulate)
      for (int64_t i = 0; i < part.rows; i++)
        std::memcpy(buffer + i * columns, c + (row + i) * c_row, valid * sizeof(float));
    tile_product(part, columns, b, bias, buffer, columns);
    for (int64_t i = 0; i < part.rows; i++)
      std::memcpy(c + (row + i) * c_row, buffer + i * columns, valid * sizeof(float));
  }
}

// One row over four panels at once: with fewer, each sum would wait for the one before.
void four_panels(const Block& g, const float* b, int64_t stride, const float* bias, float* c) {
  constexpr int kVectors = kPanel / kLanes;
  Full::T v[4][kVectors];
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) v[p][j] = bias ? Full::load(bias + p * kPanel + j * kLanes) : Full::zero();
  for (int64_t r = 0; r < g.run_count; r++) {
    const float* a = g.a + g.runs[r].offset;
    for (int64_t k = g.runs[r].count; k > 0; k--, a += g.a_col, b += kPanel) {
      const Full::T x = Full::set(*a);
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++)
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; j++) v[p][j] = Full::fma(x, Full::load(b + p * stride + j * kLanes), v[p][j]);
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
}

// All columns of a block whose first row of B is `first`.
void block_product(const Pointwise& all, const Block& g, int64_t first, float* c) {
  const int64_t n_end = ghost::by_eight(all.n);
  const auto stream = [&](int64_t n, const float*& at, int64_t& row) {
    if (all.b_row) {
      at = all.b + n, row = all.b_row;
    } else {
      const int64_t panel = n / kPanel * kPanel;
      row = n_end - panel < kPanel ? 8 : kPanel;
      at = all.b + panel * all.k + n % kPanel;
    }
    at += first * row;
  };
  int64_t n = 0;
  const bool biased = all.bias && !g.accumulate;
  if (g.rows == 1 && !all.b_row)
    for (; n + 4 * kPanel <= all.n; n += 4 * kPanel)
      four_panels(g, all.b + n * all.k + first * kPanel, kPanel * all.k, biased ? all.bias + n : nullptr, c + n);
  for (int64_t columns; n < all.n; n += columns) {
    columns = tile_columns(n_end - n);
    Streams b{};
    b.packed = !all.b_row;
    for (int64_t at = n, i = 0; at < n + columns; at = at / kPanel * kPanel + kPanel, i++)
      stream(at, b.at[i], b.row[i]);
    const float* bias = biased ? all.bias + n : nullptr;
    if (n + columns <= all.n || all.c_padded)
      tile_product(g, columns, b, bias, c + n, all.c_row);
    else
      ragged_product(g, columns, b, bias, c + n, all.c_row, all.n - n);
  }
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

}  // namespace

extern "C" void GHOST_SYMBOL(pointwise)(const Pointwise& all) {
  const Run whole{0, all.k};
  const Run* runs = all.runs ? all.runs : &whole;
  const int64_t run_count = all.runs ? all.run_count : 1;
  const int64_t blocks = all.k > kBlockColumns ? (all.k + kBlockColumns - 1) / kBlockColumns : 1;
  for (int64_t row = 0, rows; row < all.rows; row += rows) {
    rows = all.rows - row < kBlockRows * 3 / 2 ? all.rows - row : kBlockRows;
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t first = all.k * i / blocks, end = all.k * (i + 1) / blocks;
      Run mine[kMostRuns];
      const int64_t count = cut_runs(runs, run_count, all.a_col, first, end - first, mine);
      const Block g{all.a + row * all.a_row,     all.a_row, all.a_col, rows, mine, count, all.accumulate || i > 0,
                    all.relu && i == blocks - 1, all.ahead};
      block_product(all, g, first, all.c + row * all.c_row);
    }
  }
}

namespace {

// Columns j to j + L of a panel of this width, for all k.
template <int L>
void pack_columns(const Pack& p, int64_t n, int64_t j, int64_t width, const float* scale, float* out) {
  const float* w = p.weight + (n + j) * p.w_row;
  int64_t k = 0;
  if (p.w_col == 1 && n + j + L <= p.n)
    for (; k + L <= p.k; k += L) transpose<L>(w + k, p.w_row, out + k * width + j, width, Vec<L>::load(scale + j));
  for (; k < p.k; k++)
    for (int64_t i = 0; i < L; i++)
      out[k * width + j + i] = n + j + i < p.n ? w[i * p.w_row + k * p.w_col] * scale[j + i] : 0.f;
}

}  // namespace

extern "C" void GHOST_SYMBOL(pack)(const Pack& p) {
  float* out = p.out;
  for (int64_t n = 0, width; n < p.n; n += width, out += width * p.k) {
    width = p.n - n <= 8 ? 8 : kPanel;
    float scale[kPanel];
    for (int64_t j = 0; j < width; j++) scale[j] = n + j >= p.n ? 0.f : p.scale_n ? p.scale_n[n + j] : 1.f;
    int64_t j = 0;
    for (; n + j + kLanes <= p.n && j + kLanes <= width; j += kLanes) pack_columns<kLanes>(p, n, j, width, scale, out);
    for (; j < width; j += 4) pack_columns<4>(p, n, j, width, scale, out);
    if (p.scale_k)
      for (int64_t k = 0; k < p.k; k++)
        for (int64_t i = 0; i < width; i++) out[k * width + i] *= p.scale_k[k];
  }
}

// scale = gamma / sqrt(var + eps), shift = (bias - mean) scale + beta, in double: what a BatchNorm over running
// statistics does to the convolution before it.
extern "C" void GHOST_SYMBOL(fold)(const ghost::Fold& f) {
  for (int64_t c = 0; c < f.channels; c++) {
    const double s = (f.gamma ? f.gamma[c] : 1.0) / __builtin_sqrt((double)f.var[c] + f.eps);
    f.scale[c] = (float)s;
    f.shift[c] = (float)(((f.bias ? f.bias[c] : 0.0) - f.mean[c]) * s + (f.beta ? f.beta[c] : 0.0));
  }
}
