// Rows beside those of a smaller map: multiplied by it upsampled, summed down to it, pooled to half the size and back.
#include "kernels.h"
#include "simd.h"
#include "sums.h"

using ghost::Upsampled;

extern "C" void GHOST_SYMBOL(multiply_upsampled)(const Upsampled& u, const float* gate, int64_t gate_pixel, float* out,
                                                 int64_t out_pixel) {
  over_channels(u.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const auto [x, x_pixel, width, channels, columns] = u;  // in registers: a store of a vector may alias the struct
    for (int64_t i = 0; i < width; i++)
      store_some<V>(out + i * out_pixel + c,
                    load_some<V>(x + i * x_pixel + c, lanes) * load_some<V>(gate + columns[i] * gate_pixel + c, lanes),
                    lanes);
  });
}

extern "C" void GHOST_SYMBOL(sum_downsampled)(const Upsampled& u, const float* y, int64_t y_pixel, float* sum,
                                              int64_t sum_pixel) {
  over_channels(u.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const auto [x, x_pixel, width, channels, columns] = u;
    for (int64_t i = 0; i < width;) {
      const int32_t column = columns[i];
      float* to = sum + column * sum_pixel + c;
      auto total = load_some<V>(to, lanes);
      for (; i < width && columns[i] == column; i++)
        total = V::fma(load_some<V>(x + i * x_pixel + c, lanes), load_some<V>(y + i * y_pixel + c, lanes), total);
      store_some<V>(to, total, lanes);
    }
  });
}

extern "C" void GHOST_SYMBOL(upsample_bilinear)(const ghost::Bilinear& all) {
  over_channels(all.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const auto [above, below, x_pixel, down, places, width, channels, out, out_pixel] = all;
    for (int64_t i = 0; i < width; i++) {
      const auto [left, right, across] = places[i];
      const auto between = [&](const float* row) {
        return V::fma(load_some<V>(row + right * x_pixel + c, lanes), V::set(across),
                      load_some<V>(row + left * x_pixel + c, lanes) * (1.f - across));
      };
      store_some<V>(out + i * out_pixel + c, V::fma(between(below), V::set(down), between(above) * (1.f - down)),
                    lanes);
    }
  });
}

extern "C" void GHOST_SYMBOL(pool_pairs)(const float* upper, const float* lower, int64_t x_pixel, int64_t width,
                                         int64_t channels, float* out, int64_t out_pixel) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const float *a = upper + c, *b = lower + c;
    for (int64_t i = 0; i < width; i++, a += 2 * x_pixel, b += 2 * x_pixel) {
      const auto sum = load_some<V>(a, lanes) + load_some<V>(a + x_pixel, lanes) + load_some<V>(b, lanes) +
                       load_some<V>(b + x_pixel, lanes);
      store_some<V>(out + i * out_pixel + c, sum * 0.25f, lanes);
    }
  });
}

extern "C" void GHOST_SYMBOL(unpool_pairs)(const float* grad, int64_t grad_pixel, int64_t width, int64_t channels,
                                           float* upper, float* lower, int64_t out_pixel) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    float *a = upper + c, *b = lower + c;
    for (int64_t i = 0; i < width; i++, a += 2 * out_pixel, b += 2 * out_pixel) {
      const auto quarter = load_some<V>(grad + i * grad_pixel + c, lanes) * 0.25f;
      store_some<V>(a, quarter, lanes), store_some<V>(a + out_pixel, quarter, lanes);
      store_some<V>(b, quarter, lanes), store_some<V>(b + out_pixel, quarter, lanes);
    }
  });
}
