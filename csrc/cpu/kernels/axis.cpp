// Depthwise convolutions along one axis, as DFC attention has them, and the gradient of their weight.
#include "kernels.h"
#include "simd.h"
#include "sums.h"

namespace {

using ghost::AxisConv;
using ghost::AxisWeightGrad;

// The addresses of the K pixels under the taps of an output row's first pixel.
template <int K, class A>
GHOST_INLINE void first_pixels(const A& a, int64_t r, int64_t c, const float** p) {
#pragma GCC unroll 7
  for (int j = 0; j < K; j++) p[j] = a.rows[r + j * a.tap_row] + j * a.tap_pixel * a.in_pixel + c;
}

template <int K>
void axis_conv(const AxisConv& all) {
  over_channels(all.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const AxisConv a = all;  // in registers: a store of a vector may alias the caller's struct
    typename V::T k[K];
#pragma GCC unroll 7
    for (int j = 0; j < K; j++) k[j] = V::load(a.weight + j * a.weight_row + c);
    for (int64_t r = 0; r < a.count; r++) {
      const float* p[K];
      first_pixels<K>(a, r, c, p);
      float* out = a.out + r * a.out_row + c;
      for (int64_t i = 0; i < a.width; i++, out += a.out_pixel) {
        auto sum = load_some<V>(p[0] + i * a.in_pixel, lanes) * k[0];
#pragma GCC unroll 7
        for (int j = 1; j < K; j++) sum = V::fma(load_some<V>(p[j] + i * a.in_pixel, lanes), k[j], sum);
        store_some<V>(out, sum, lanes);
      }
    }
  });
}

// The sums of a row stay in registers, and join compensated ones.
template <int K>
void axis_weight_grad(const AxisWeightGrad& a) {
  over_channels(a.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    Sum<V> total[K];
    for (int64_t r = 0; r < a.count; r++) {
      const float *p[K], *g = a.g[r] + c;
      first_pixels<K>(a, r, c, p);
      typename V::T sum[K];
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) sum[j] = V::zero();
      for (int64_t i = 0; i < a.width; i++) {
        const auto grad = load_some<V>(g + i * a.g_pixel, lanes);
#pragma GCC unroll 7
        for (int j = 0; j < K; j++) sum[j] = V::fma(grad, load_some<V>(p[j] + i * a.in_pixel, lanes), sum[j]);
      }
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) Sum<V>::add(total[j], sum[j]);
    }
    for (int j = 0; j < K; j++) add_to<V>(a.grad + j * ghost::sum_floats(a.channels), a.channels, c, total[j], lanes);
  });
}

}  // namespace

extern "C" void GHOST_SYMBOL(axis_conv)(const AxisConv& a) {
  with_kernel(a.taps, [&](auto taps) { axis_conv<taps>(a); });
}

extern "C" void GHOST_SYMBOL(axis_weight_grad)(const AxisWeightGrad& a) {
  with_kernel(a.taps, [&](auto taps) { axis_weight_grad<taps>(a); });
}
