// Gradients of depthwise convolutions: of the weight with any stride, of the input with one above 1 (with stride 1 it
// is the convolution with the flipped weight).
#include "kernels.h"
#include "simd.h"
#include "sums.h"

namespace {

using ghost::DepthwiseInputGrad;
using ghost::DepthwiseWeightGrad;

// R rows of taps, the first of them `i`: the sums over a call stay in registers, so long sums are taken in two levels.
template <class V, int K, int R, class Lanes>
GHOST_INLINE void weight_grad_rows(const DepthwiseWeightGrad d, int i, int64_t c, Lanes lanes) {
  constexpr int P = K / 2;
  using T = typename V::T;
  const int64_t step = d.in_pixel, move = d.stride * step, in_width = d.stride == 1 ? d.width : d.in_width;
  T sum[R][K];
#pragma GCC unroll 7
  for (int q = 0; q < R; q++)
#pragma GCC unroll 7
    for (int j = 0; j < K; j++) sum[q][j] = V::zero();
  for (int64_t r = 0; r < d.count; r++) {
    const float* in[R];
#pragma GCC unroll 7
    for (int q = 0; q < R; q++) in[q] = d.rows[r * d.stride + i + q] + c - P * step;
    const float* g = d.g[r] + c;
    for (int64_t x = 0; x < d.width; x++, g += d.g_pixel) {
      const T grad = V::load(g);
      const int64_t left = x * d.stride - P;
      if (left >= 0 && left + K <= in_width) {
#pragma GCC unroll 7
        for (int q = 0; q < R; q++)
#pragma GCC unroll 7
          for (int j = 0; j < K; j++) sum[q][j] = V::fma(grad, V::load(in[q] + j * step), sum[q][j]);
      } else {
#pragma GCC unroll 7
        for (int j = 0; j < K; j++)
          if (left + j >= 0 && left + j < in_width)
#pragma GCC unroll 7
            for (int q = 0; q < R; q++) sum[q][j] = V::fma(grad, V::load(in[q] + j * step), sum[q][j]);
      }
#pragma GCC unroll 7
      for (int q = 0; q < R; q++) in[q] += move;
    }
  }
  const int64_t floats = ghost::sum_floats(d.channels);
  float* out = d.grad + i * K * floats;
#pragma GCC unroll 7
  for (int q = 0; q < R; q++)
#pragma GCC unroll 7
    for (int j = 0; j < K; j++, out += floats) add_to<V>(out, d.channels, c, Sum<V>{sum[q][j], V::zero()}, lanes);
}

// As many rows of taps at a time as have their sums in registers: a pixel then has so many independent sums that none
// waits for the one before it.
template <int K>
void weight_grad(const DepthwiseWeightGrad& d) {
  constexpr int kMost = (kRegisters - 3) / K, R = kMost < K ? kMost : K, kLeft = K % R;
  over_channels(d.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    int i = 0;
    for (; i + R <= K; i += R) weight_grad_rows<V, K, R>(d, i, c, lanes);
    if constexpr (kLeft > 0) weight_grad_rows<V, K, kLeft>(d, i, c, lanes);
  });
}

// S * PX pixels of row r from pixel q * S on. Every S-th row and column of taps is on a pixel of the gradient. Each
// of these is loaded once for all the pixels that it reaches; those that are needed must all be within their row, or
// need not (kEdge; then fewer may be wanted, too).
template <class V, int K, int S, int PX, bool kEdge, class Lanes>
GHOST_INLINE void input_pixels(const DepthwiseInputGrad& d, int64_t r, int64_t q, int64_t c, Lanes lanes) {
  constexpr int P = K / 2, NX = S * PX, kFirst = -(P / S), kLast = (NX - 1 + P) / S;
  using T = typename V::T;
  const int64_t step = d.g_pixel, w_row = d.weight_row;
  T sum[NX];
#pragma GCC unroll 16
  for (int x = 0; x < NX; x++) sum[x] = V::zero();
  for (int64_t i = (r + P) % S; i < K; i += S) {
    const float* row = d.rows[(r + P - i) / S + P / S];
    if (!row) continue;
    const float *p = row + (q + kFirst) * step + c, *w = d.weight + i * K * w_row + c;
    T k[K];
#pragma GCC unroll 7
    for (int j = 0; j < K; j++) k[j] = V::load(w + j * w_row);
#pragma GCC unroll 32
    for (int at = kFirst; at <= kLast; at++) {
      const T g = V::load(!kEdge || (uint64_t)(q + at) < (uint64_t)d.g_width ? p : kOutside);
      p += step;
      asm("" : "+r"(p));  // else all addresses are computed ahead, and kept on the stack
#pragma GCC unroll 16
      for (int x = 0; x < NX; x++)
        if (x + P - at * S >= 0 && x + P - at * S < K) sum[x] = V::fma(g, k[x + P - at * S], sum[x]);
    }
  }
  float* out = d.out + r * d.out_row + q * S * d.out_pixel + c;
  const int64_t wanted = d.width - q * S;
#pragma GCC unroll 16
  for (int x = 0; x < NX; x++, out += d.out_pixel)
    if (!kEdge || x < wanted) store_some<V>(out, sum[x], lanes);
}

// With stride S, CV vectors of channels at a time: those of one cache line.
template <class V, int K, int S, int CV, class Lanes>
void input_grad_block(const DepthwiseInputGrad& all, int64_t c, Lanes lanes) {
  const DepthwiseInputGrad d = all;  // in registers: a store of a vector may alias the caller's struct
  constexpr int P = K / 2, PX = kRegisters >= 32 ? 8 : K <= 5 ? 4 : 3;
  for (int64_t r = 0; r < d.count; r++)
    for (int64_t q = 0; q * S < d.width; q += PX) {
      const bool within = q >= P / S && (q + PX) * S <= d.width && q + (S * PX - 1 + P) / S < d.g_width;
      for (int v = 0; v < CV; v++) {
        if (within)
          input_pixels<V, K, S, PX, false>(d, r, q, c + v * V::lanes, lanes);
        else
          input_pixels<V, K, S, PX, true>(d, r, q, c + v * V::lanes, lanes);
      }
    }
}

// With any stride.
template <class V, int K, class Lanes>
void input_grad_of_any_stride(const DepthwiseInputGrad& all, int64_t c, Lanes lanes) {
  const DepthwiseInputGrad d = all;  // as above
  constexpr int P = K / 2;
  for (int64_t r = 0; r < d.count; r++)
    for (int64_t x = 0; x < d.width; x++) {
      typename V::T sum = V::zero();
      for (int64_t i = (r + P) % d.stride; i < K; i += d.stride) {
        const float* row = d.rows[(r + P - i) / d.stride + P / d.stride];
        for (int64_t j = row ? (x + P) % d.stride : K; j < K; j += d.stride) {
          const int64_t at = (x + P - j) / d.stride;
          if (x + P >= j && at < d.g_width)
            sum = V::fma(V::load(row + at * d.g_pixel + c), V::load(d.weight + (i * K + j) * d.weight_row + c), sum);
        }
      }
      store_some<V>(d.out + r * d.out_row + x * d.out_pixel + c, sum, lanes);
    }
}

template <class V, int K, int CV, class Lanes>
GHOST_INLINE void input_grad_channels(const DepthwiseInputGrad& d, int64_t c, Lanes lanes) {
  if (d.stride == 2)
    input_grad_block<V, K, 2, CV>(d, c, lanes);
  else
    for (int v = 0; v < CV; v++) input_grad_of_any_stride<V, K>(d, c + v * V::lanes, lanes);
}

template <int K>
void input_grad(const DepthwiseInputGrad& d) {
  constexpr int CV = kLanes < 16 ? 16 / kLanes : 1;
  int64_t c = 0;
  for (; c + CV * kLanes <= d.channels; c += CV * kLanes) input_grad_channels<Full, K, CV>(d, c, Whole<kLanes>{});
  over_channels(d.channels - c,
                [&](auto v, int64_t more, auto lanes) { input_grad_channels<decltype(v), K, 1>(d, c + more, lanes); });
}

}  // namespace

extern "C" void GHOST_SYMBOL(depthwise_weight_grad)(const DepthwiseWeightGrad& d) {
  with_kernel(d.kernel, [&](auto size) { weight_grad<size>(d); });
}

extern "C" void GHOST_SYMBOL(depthwise_input_grad)(const DepthwiseInputGrad& d) {
  with_kernel(d.kernel, [&](auto size) { input_grad<size>(d); });
}
