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

// One output pixel of any kernel and stride, its taps clipped to the row. A sum for each row of taps: in one, every tap
// would wait for the one before.
template <class V, int K>
GHOST_INLINE typename V::T clipped(const Depthwise& d, int64_t r, int64_t x, int64_t c, int64_t stride,
                                   int64_t in_width, typename V::T bias) {
  constexpr int P = K / 2;
  using T = typename V::T;
  const int64_t left = x * stride - P, first = left < 0 ? -left : 0, last = in_width - left < K ? in_width - left : K;
  T sum[K];
#pragma GCC unroll 7
  for (int i = 0; i < K; i++) sum[i] = i ? V::zero() : bias;
  const float* w = d.weight + first * d.weight_row + c;
  for (int64_t j = first; j < last; j++, w += d.weight_row) {
#pragma GCC unroll 7
    for (int i = 0; i < K; i++)
      sum[i] = V::fma(V::load(d.rows[r * stride + i] + (left + j) * d.in_pixel + c), V::load(w + i * K * d.weight_row),
                      sum[i]);
  }
  T total = sum[0];
#pragma GCC unroll 7
  for (int i = 1; i < K; i++) total += sum[i];
  return total;
}

// Output pixels of row r from x on, PX at a time while their taps lie within the row; returns the first one that is
// left. Each load of a weight is shared by PX pixels.
template <class V, int K, int PX, class Lanes>
GHOST_INLINE int64_t inner(const Depthwise& d, int64_t r, int64_t x, int64_t c, int64_t stride, int64_t in_width,
                           typename V::T bias, const Out<V, Lanes>& put) {
  constexpr int P = K / 2;
  using T = typename V::T;
  const int64_t step = d.in_pixel, next = stride * step, w_row = d.weight_row;
  for (; x + PX <= d.width && (x + PX - 1) * stride + K - P <= in_width; x += PX) {
    T sum[PX];
#pragma GCC unroll 8
    for (int q = 0; q < PX; q++) sum[q] = bias;
    const float* w = d.weight + c;
    for (int i = 0; i < K; i++) {
      const float* p = d.rows[r * stride + i] + (x * stride - P) * step + c;
#pragma GCC unroll 7
      for (int j = 0; j < K; j++, w += w_row, p += step) {
        const T k = V::load(w);
#pragma GCC unroll 8
        for (int q = 0; q < PX; q++) sum[q] = V::fma(V::load(p + q * next), k, sum[q]);
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < PX; q++) put(d.out + r * d.out_row + (x + q) * d.out_pixel + c, sum[q]);
  }
  return x;
}

// Any kernel; S is the stride, 0: only known when it runs.
template <class V, int K, int S, class Lanes>
void block(const Depthwise& all, int64_t c, Lanes lanes) {
  const Depthwise d = all;  // as above
  constexpr int P = K / 2;
  const int64_t stride = S ? S : d.stride, in_width = S == 1 ? d.width : d.in_width;
  const typename V::T bias = d.bias ? V::load(d.bias + c) : V::zero();
  const Out<V, Lanes> put{lanes, d.relu};
  for (int64_t r = 0; r < d.count; r++) {
    float* out = d.out + r * d.out_row + c;
    int64_t x = 0;
    for (; x < d.width && x * stride < P; x++) put(out + x * d.out_pixel, clipped<V, K>(d, r, x, c, stride, in_width, bias));
    x = inner<V, K, 8>(d, r, x, c, stride, in_width, bias, put);
    x = inner<V, K, 4>(d, r, x, c, stride, in_width, bias, put);
    x = inner<V, K, 2>(d, r, x, c, stride, in_width, bias, put);
    for (; x < d.width; x++) put(out + x * d.out_pixel, clipped<V, K>(d, r, x, c, stride, in_width, bias));
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

template <int K>
void depthwise(const Depthwise& d) {
  over_channels(d.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    if (d.stride == 2)
      block<V, K, 2>(d, c, lanes);
    else if (d.stride != 1)
      block<V, K, 0>(d, c, lanes);
    else if constexpr (K == 3)
      block_3x3<V>(d, c, lanes);
    else
      block<V, K, 1>(d, c, lanes);
  });
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
