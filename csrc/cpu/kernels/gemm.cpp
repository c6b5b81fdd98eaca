// Matrix products in float32, and the packing of their weights.
#include "gemm.h"

extern "C" void GHOST_SYMBOL(gemm)(const Gemm& all) {
  over_blocks<1, true>(
      all, [&](const Block& g, int64_t, const Source& s, float* c) { source_product<Plain>(all, g, s, c); });
}

namespace {

using ghost::Pack;

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
