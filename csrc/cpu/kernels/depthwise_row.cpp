// A row of a depthwise convolution with any kernel, stride, padding and dilation.
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::DepthwiseRow;

// PX output pixels from x on, all of whose taps are within the row.
template <class V, int PX, class Lanes>
GHOST_INLINE void pixels(const DepthwiseRow& d, int64_t x, int64_t c, typename V::T bias, Lanes lanes) {
  using T = typename V::T;
  const int64_t step = d.stride * d.in_pixel;
  T sum[PX];
#pragma GCC unroll 8
  for (int q = 0; q < PX; q++) sum[q] = bias;
  const float* w = d.weight + c;
  for (int64_t i = 0; i < d.kernel_h; i++) {
    const float* p = d.rows[i] + (x * d.stride - d.padding) * d.in_pixel + c;
    for (int64_t j = 0; j < d.kernel_w; j++, p += d.dilation * d.in_pixel, w += d.weight_row) {
      const T k = V::load(w);
#pragma GCC unroll 8
      for (int q = 0; q < PX; q++) sum[q] = V::fma(V::load(p + q * step), k, sum[q]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < PX; q++) {
    const T v = d.relu ? V::max(V::zero(), sum[q]) : sum[q];
    float* to = d.out + (x + q) * d.out_pixel + c;
    if (lanes == V::lanes)
      V::store(to, v);
    else
      V::store(to, v, lanes);
  }
}

// One output pixel, some of whose taps may be outside of the row.
template <class V, class Lanes>
void border_pixel(const DepthwiseRow& d, int64_t x, int64_t c, typename V::T bias, Lanes lanes) {
  typename V::T sum = bias;
  for (int64_t i = 0; i < d.kernel_h; i++)
    for (int64_t j = 0; j < d.kernel_w; j++) {
      const int64_t at = x * d.stride - d.padding + j * d.dilation;
      if (at >= 0 && at < d.in_width)
        sum = V::fma(V::load(d.rows[i] + at * d.in_pixel + c),
                     V::load(d.weight + (i * d.kernel_w + j) * d.weight_row + c), sum);
    }
  const auto v = d.relu ? V::max(V::zero(), sum) : sum;
  float* to = d.out + x * d.out_pixel + c;
  if (lanes == V::lanes)
    V::store(to, v);
  else
    V::store(to, v, lanes);
}

}  // namespace

extern "C" void GHOST_SYMBOL(depthwise_row)(const DepthwiseRow& all) {
  const DepthwiseRow d = all;  // in registers: a store of a vector may alias the caller's struct
  const int64_t reach = (d.kernel_w - 1) * d.dilation - d.padding;  // of the last tap beyond its pixel's place
  int64_t begin = (d.padding + d.stride - 1) / d.stride, end = (d.in_width - 1 - reach) / d.stride + 1;
  if (d.in_width - 1 - reach < 0) end = 0;
  begin = begin < d.width ? begin : d.width, end = end < d.width ? end : d.width;
  over_channels(d.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const auto bias = d.bias ? V::load(d.bias + c) : V::zero();
    int64_t x = 0;
    for (; x < begin; x++) border_pixel<V>(d, x, c, bias, lanes);
    for (; x + 8 <= end; x += 8) pixels<V, 8>(d, x, c, bias, lanes);
    for (; x < end; x++) pixels<V, 1>(d, x, c, bias, lanes);
    for (; x < d.width; x++) border_pixel<V>(d, x, c, bias, lanes);
  });
}
