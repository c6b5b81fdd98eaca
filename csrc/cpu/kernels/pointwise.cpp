// Pointwise convolutions as matrix products: register tiles of rows x vectors over packed panels of B.
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::Pack;
using ghost::Pointwise;

// Rows of a register tile that is NV full and NH half vectors wide: what the registers hold beside B and a broadcast.
constexpr int tile_rows(int nv, int nh) {
  const int width = nv + nh;
  const int rows = (kRegisters - 1 - width) / width;
  if (kRegisters < 32) return rows >= 12 ? 12 : rows;
  return rows >= 28 ? 28 : rows >= 14 ? 14 : rows >= 8 ? 8 : rows;
}

// Rows of A that stay in cache while all panels pass over them: a multiple of every tile's.
constexpr int64_t kBlockRows = kRegisters < 32 ? 48 : 56;

// Width of the next panel: two vectors and perhaps a half one where that ends the columns.
GHOST_INLINE int64_t panel_width(int64_t left) {
  if (left > 2 * kLanes + kHalf || (left > 2 * kLanes && !kHalves)) return 2 * kLanes;
  if (left > 2 * kLanes) return 2 * kLanes + kHalf;
  if (left > kLanes + kHalf) return 2 * kLanes;
  if (left > kLanes) return kHalves ? kLanes + kHalf : 2 * kLanes;
  return left > kHalf ? kLanes : kHalf;
}

template <int MR, int NV, int NH>
__attribute__((noinline)) int64_t tiles(const Pointwise& g, int64_t row, const float* panel, int64_t b_row,
                                        const float* bias, float* c, int64_t c_row) {
  for (; row + MR <= g.rows; row += MR) {
    Full::T v[MR][NV ? NV : 1];
    Half::T h[MR];
    float* out = c + row * c_row;
#pragma GCC unroll 28
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) v[i][j] = bias ? Full::load(bias + j * kLanes) : Full::zero();
      if (NH) h[i] = bias ? Half::load(bias + NV * kLanes) : Half::zero();
    }
    const float *a = g.a + row * g.a_row, *b = panel;
    const int64_t a_row = g.a_row, a_col = g.a_col;
    for (int64_t k = g.k; k > 0; k--, a += a_col, b += b_row) {
      Full::T w[NV ? NV : 1];
      Half::T u;
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) w[j] = Full::load(b + j * kLanes);
      if (NH) u = Half::load(b + NV * kLanes);
#pragma GCC unroll 28
      for (int i = 0; i < MR; i++) {
        const float x = a[i * a_row];
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) v[i][j] = Full::fma(Full::set(x), w[j], v[i][j]);
        if (NH) h[i] = Half::fma(Half::set(x), u, h[i]);
      }
    }
    if (g.accumulate) {  // only now, so that a long sum is taken in two levels
#pragma GCC unroll 28
      for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) v[i][j] += Full::load(out + i * c_row + j * kLanes);
        if (NH) h[i] += Half::load(out + i * c_row + NV * kLanes);
      }
    }
    const bool relu = g.relu;
#pragma GCC unroll 28
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++)
        Full::store(out + i * c_row + j * kLanes, relu ? Full::max(Full::zero(), v[i][j]) : v[i][j]);
      if (NH) Half::store(out + i * c_row + NV * kLanes, relu ? Half::max(Half::zero(), h[i]) : h[i]);
    }
  }
  return row;
}

// All rows of one panel: the widest tiles first, then halves of them for the rows that are left.
template <int MR, int NV, int NH>
GHOST_INLINE void column(const Pointwise& g, int64_t row, const float* panel, int64_t b_row, const float* bias,
                         float* c, int64_t c_row) {
  row = tiles<MR, NV, NH>(g, row, panel, b_row, bias, c, c_row);
  if constexpr (MR > 1)
    if (row < g.rows) column<MR / 2, NV, NH>(g, row, panel, b_row, bias, c, c_row);
}

template <int NV, int NH>
void column_of(const Pointwise& g, const float* panel, int64_t b_row, const float* bias, float* c, int64_t c_row) {
  column<tile_rows(NV, NH), NV, NH>(g, 0, panel, b_row, bias, c, c_row);
}

void panel_product(const Pointwise& g, int64_t width, const float* panel, int64_t b_row, const float* bias, float* c,
                   int64_t c_row) {
  if (width == 2 * kLanes) return column_of<2, 0>(g, panel, b_row, bias, c, c_row);
  if (width == kLanes) return column_of<1, 0>(g, panel, b_row, bias, c, c_row);
  if constexpr (kHalves) {
    if (width == 2 * kLanes + kHalf) return column_of<2, 1>(g, panel, b_row, bias, c, c_row);
    if (width == kLanes + kHalf) return column_of<1, 1>(g, panel, b_row, bias, c, c_row);
    return column_of<0, 1>(g, panel, b_row, bias, c, c_row);
  }
}

// The last panel where C has no room for its padding: through a buffer, a few rows at a time.
void ragged_product(const Pointwise& g, int64_t width, const float* panel, int64_t b_row, const float* bias, float* c,
                    int64_t valid) {
  constexpr int64_t kRows = 28;
  float buffer[kRows * (2 * kLanes + kHalf)];
  for (int64_t row = 0; row < g.rows; row += kRows) {
    Pointwise part = g;
    part.rows = g.rows - row < kRows ? g.rows - row : kRows;
    part.a = g.a + row * g.a_row;
    if (g.accumulate)
      for (int64_t i = 0; i < part.rows; i++)
        std::memcpy(buffer + i * width, c + (row + i) * g.c_row, valid * sizeof(float));
    panel_product(part, width, panel, b_row, bias, buffer, width);
    for (int64_t i = 0; i < part.rows; i++)
      std::memcpy(c + (row + i) * g.c_row, buffer + i * width, valid * sizeof(float));
  }
}

}  // namespace

extern "C" void GHOST_SYMBOL(pointwise)(const Pointwise& all) {
  for (int64_t row = 0; row < all.rows; row += kBlockRows) {
    Pointwise g = all;
    g.rows = all.rows - row < kBlockRows ? all.rows - row : kBlockRows;
    g.a += row * g.a_row;
    float* c = all.c + row * all.c_row;
    for (int64_t n = 0, width; n < g.n; n += width) {
      width = panel_width(g.n - n);
      const float* panel = g.b_row ? g.b + n : g.b + n * g.k;
      const int64_t b_row = g.b_row ? g.b_row : width;
      const float* bias = g.bias ? g.bias + n : nullptr;
      if (n + width <= g.n || g.c_padded)
        panel_product(g, width, panel, b_row, bias, c + n, g.c_row);
      else
        ragged_product(g, width, panel, b_row, bias, c + n, g.n - n);
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
    width = panel_width(p.n - n);
    float scale[2 * kLanes + kHalf];
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
