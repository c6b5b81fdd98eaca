// Depthwise convolutions: channels across the lanes, weights in registers or a cache line away.
#include "kernels.h"
#include "simd.h"
#include "sums.h"

namespace {

using ghost::Depthwise;
using ghost::DepthwiseWeightGrad;
using ghost::padded;

template <class V, class Lanes>
struct Out {  // stores of one block of channels
  Lanes lanes;
  bool relu;
  GHOST_INLINE typename V::T finish(bool relu, typename V::T v) { return relu ? V::max(V::zero(), v) : v; }
  void operator()(float* p, typename V::T v) const {
    v = finish(relu, v);
    if (lanes == V::lanes)
      V::store(p, v);
    else
      V::store(p, v, lanes);
  }
};

// 3x3, two output rows a pass: each input pixel is loaded once and feeds three columns of both rows.
template <class V, class Lanes>
GHOST_INLINE void two_rows_3x3(const Depthwise& d, int64_t r, int64_t c, const typename V::T* k, typename V::T bias,
                               const Out<V, Lanes>& put) {
  using T = typename V::T;
  const float *p0 = d.rows[r] + c, *p1 = d.rows[r + 1] + c, *p2 = d.rows[r + 2] + c, *p3 = d.rows[r + 3] + c;
  float* out = d.out + r * d.out_row + c;
  const int64_t step = d.in_pixel;
  // sums of the two rows: `done` lacks the column to come, `next` has only the column before it
  T done0 = bias, done1 = bias, next0 = bias, next1 = bias;
  for (int64_t x = 0; x < d.width; x++, p0 += step, p1 += step, p2 += step, p3 += step) {
    const T x0 = V::load(p0), x1 = V::load(p1), x2 = V::load(p2), x3 = V::load(p3);
    const T v0 = V::fma(x2, k[8], V::fma(x1, k[5], V::fma(x0, k[2], done0)));
    const T v1 = V::fma(x3, k[8], V::fma(x2, k[5], V::fma(x1, k[2], done1)));
    done0 = V::fma(x2, k[7], V::fma(x1, k[4], V::fma(x0, k[1], next0)));
    done1 = V::fma(x3, k[7], V::fma(x2, k[4], V::fma(x1, k[1], next1)));
    next0 = V::fma(x2, k[6], V::fma(x1, k[3], V::fma(x0, k[0], bias)));
    next1 = V::fma(x3, k[6], V::fma(x2, k[3], V::fma(x1, k[0], bias)));
    if (x) {
      put(out, v0);
      put(out + d.out_row, v1);
      out += d.out_pixel;
    }
  }
  put(out, done0);
  put(out + d.out_row, done1);
}

template <class V, class Lanes>
GHOST_INLINE void one_row_3x3(const Depthwise& d, int64_t r, int64_t c, const typename V::T* k, typename V::T bias,
                              const Out<V, Lanes>& put) {
  using T = typename V::T;
  const float *p0 = d.rows[r] + c, *p1 = d.rows[r + 1] + c, *p2 = d.rows[r + 2] + c;
  float* out = d.out + r * d.out_row + c;
  T done = bias, next = bias;
  for (int64_t x = 0; x < d.width; x++, p0 += d.in_pixel, p1 += d.in_pixel, p2 += d.in_pixel) {
    const T x0 = V::load(p0), x1 = V::load(p1), x2 = V::load(p2);
    const T v = V::fma(x2, k[8], V::fma(x1, k[5], V::fma(x0, k[2], done)));
    done = V::fma(x2, k[7], V::fma(x1, k[4], V::fma(x0, k[1], next)));
    next = V::fma(x2, k[6], V::fma(x1, k[3], V::fma(x0, k[0], bias)));
    if (x) {
      put(out, v);
      out += d.out_pixel;
    }
  }
  put(out, done);
}

template <class V, class Lanes>
void block_3x3(const Depthwise& all, int64_t c, Lanes lanes) {
  const Depthwise d = all;  // in registers: a store of a vector may alias the caller's struct
  typename V::T k[9];
#pragma GCC unroll 9
  for (int i = 0; i < 9; i++) k[i] = V::load(d.weight + i * d.weight_row + c);
  const typename V::T bias = d.bias ? V::load(d.bias + c) : V::zero();
  const Out<V, Lanes> put{lanes, d.relu};
  int64_t r = 0;
  for (; r + 2 <= d.count; r += 2) two_rows_3x3<V>(d, r, c, k, bias, put);
  if (r < d.count) one_row_3x3<V>(d, r, c, k, bias, put);
}

alignas(64) constexpr float kOutside[2 * kLanes] = {};  // what a tap outside of the row reads

// PX output pixels of CV vectors each, from x on, whose taps all lie within the row, or not (kEdge; then fewer may be
// wanted, too). Each load of a weight is shared by PX pixels, and PX x CV sums hide the latency of an addition.
template <class V, int K, int PX, int CV, bool kEdge, class Lanes>
GHOST_INLINE void pixels(const Depthwise& d, int64_t r, int64_t x, int64_t c, int64_t stride, int64_t in_width,
                         const typename V::T* bias, const Out<V, Lanes>& put) {
  constexpr int P = K / 2;
  using T = typename V::T;
  const int64_t step = d.in_pixel, next = stride * step, w_row = d.weight_row, left = x * stride - P;
  const int wanted = kEdge && d.width - x < PX ? (int)(d.width - x) : PX;
  T sum[PX][CV];
#pragma GCC unroll 8
  for (int q = 0; q < PX; q++)
#pragma GCC unroll 2
    for (int v = 0; v < CV; v++) sum[q][v] = bias[v];
  for (int i = 0; i < K; i++) {
    const float *p = d.rows[r * stride + i] + left * step + c, *w = d.weight + i * K * w_row + c;
    for (int j = 0; j < K; j++, w += w_row, p += step) {
      T k[CV];
#pragma GCC unroll 2
      for (int v = 0; v < CV; v++) k[v] = V::load(w + v * V::lanes);
#pragma GCC unroll 8
      for (int q = 0; q < PX; q++) {
        const float* from = p + q * next;
        if (kEdge) from = (uint64_t)(left + j + q * stride) < (uint64_t)in_width ? from : kOutside;
#pragma GCC unroll 2
        for (int v = 0; v < CV; v++) sum[q][v] = V::fma(V::load(from + v * V::lanes), k[v], sum[q][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < PX; q++)
    if (!kEdge || q < wanted)
#pragma GCC unroll 2
      for (int v = 0; v < CV; v++) put(d.out + r * d.out_row + (x + q) * d.out_pixel + c + v * V::lanes, sum[q][v]);
}

// Any kernel, CV vectors of channels at a time; S is the stride, 0: only known when it runs.
template <class V, int K, int S, int CV, class Lanes>
void block(const Depthwise& all, int64_t c, Lanes lanes) {
  const Depthwise d = all;  // as above
  constexpr int P = K / 2, PX = 8 / CV;
  const int64_t stride = S ? S : d.stride, in_width = S == 1 ? d.width : d.in_width;
  typename V::T bias[CV];
  for (int v = 0; v < CV; v++) bias[v] = d.bias ? V::load(d.bias + c + v * V::lanes) : V::zero();
  const Out<V, Lanes> put{lanes, d.relu};
  for (int64_t r = 0; r < d.count; r++)
    for (int64_t x = 0; x < d.width; x += PX) {
      if (x * stride >= P && x + PX <= d.width && (x + PX - 1) * stride + K - P <= in_width)
        pixels<V, K, PX, CV, false>(d, r, x, c, stride, in_width, bias, put);
      else
        pixels<V, K, PX, CV, true>(d, r, x, c, stride, in_width, bias, put);
    }
}

// Gradient of one row of taps (i, 0..K-1): the sums over a call stay in registers, so long sums are taken in two
// levels.
template <class V, int K, class Lanes>
GHOST_INLINE void weight_grad_taps(const DepthwiseWeightGrad d, int i, int64_t c, Lanes lanes) {
  constexpr int P = K / 2;
  using T = typename V::T;
  T sum[K];
#pragma GCC unroll 7
  for (int j = 0; j < K; j++) sum[j] = V::zero();
  for (int64_t r = 0; r < d.count; r++) {
    const float *in = d.rows[r + i] + c, *g = d.g + r * d.g_row + c;
    for (int64_t x = 0; x < d.width; x++, g += d.g_pixel) {
      const T grad = V::load(g);
      if (x >= P && x + P < d.width) {
#pragma GCC unroll 7
        for (int j = 0; j < K; j++) sum[j] = V::fma(grad, V::load(in + (x + j - P) * d.in_pixel), sum[j]);
      } else {
#pragma GCC unroll 7
        for (int j = 0; j < K; j++) {
          const int64_t at = x + j - P;
          if (at >= 0 && at < d.width) sum[j] = V::fma(grad, V::load(in + at * d.in_pixel), sum[j]);
        }
      }
    }
  }
  float* out = d.grad + i * K * ghost::sum_floats(d.channels);
#pragma GCC unroll 7
  for (int j = 0; j < K; j++, out += ghost::sum_floats(d.channels))
    add_to<V>(out, d.channels, c, Sum<V>{sum[j], V::zero()}, lanes);
}

template <int K>
void weight_grad(const DepthwiseWeightGrad& d) {
  over_channels(d.channels, [&](auto v, int64_t c, auto lanes) {
    for (int i = 0; i < K; i++) weight_grad_taps<decltype(v), K>(d, i, c, lanes);
  });
}

template <int K, int CV, class V, class Lanes>
GHOST_INLINE void any_stride(V, const Depthwise& d, int64_t c, Lanes lanes) {
  if (d.stride == 2)
    block<V, K, 2, CV>(d, c, lanes);
  else if (d.stride == 1)
    block<V, K, 1, CV>(d, c, lanes);
  else
    block<V, K, 0, CV>(d, c, lanes);
}

template <int K>
void depthwise(const Depthwise& d) {
  if (K == 3 && d.stride == 1) {
    over_channels(d.channels, [&](auto v, int64_t c, auto lanes) { block_3x3<decltype(v)>(d, c, lanes); });
    return;
  }
  int64_t c = 0;
  for (; c + 2 * kLanes <= d.channels; c += 2 * kLanes) any_stride<K, 2>(Full{}, d, c, Whole<kLanes>{});
  over_channels(d.channels - c, [&](auto v, int64_t more, auto lanes) { any_stride<K, 1>(v, d, c + more, lanes); });
}

}  // namespace

extern "C" void GHOST_SYMBOL(depthwise)(const Depthwise& d) {
  if (d.width == 0) return;
  switch (d.kernel) {
    case 1:
      return depthwise<1>(d);
    case 3:
      return depthwise<3>(d);
    case 5:
      return depthwise<5>(d);
    default:
      return depthwise<7>(d);
  }
}

extern "C" void GHOST_SYMBOL(depthwise_weight_grad)(const DepthwiseWeightGrad& d) {
  switch (d.kernel) {
    case 1:
      return weight_grad<1>(d);
    case 3:
      return weight_grad<3>(d);
    case 5:
      return weight_grad<5>(d);
    default:
      return weight_grad<7>(d);
  }
}
