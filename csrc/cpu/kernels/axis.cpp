// Depthwise convolutions along one axis, as DFC attention has them, and the gradient of their weight.
#include "kernels.h"
#include "simd.h"
#include "sums.h"

namespace {

using ghost::AxisConv;
using ghost::AxisWeightGrad;

// The addresses of the pixels under the K taps of an output row's first pixel; along a row some are before its start.
template <int K, class A>
GHOST_INLINE void first_pixels(const A& a, int64_t r, int64_t c, const float** p) {
#pragma GCC unroll 7
  for (int j = 0; j < K; j++)
    p[j] = a.tap_row ? a.rows[r + j * a.tap_row] + c : a.rows[r] + (j - K / 2) * a.in_pixel + c;
}

// Pixels of a row of which all taps are inside: from, and the first behind.
template <int K, class A>
GHOST_INLINE void inner_pixels(const A& a, int64_t* from, int64_t* to) {
  const int64_t reach = a.tap_row ? 0 : K / 2;
  *from = reach < a.width ? reach : a.width;
  *to = a.width - reach > *from ? a.width - reach : *from;
}

// Runs inner(i) for pixels whose taps are all inside, and edge(i, j) for each tap that is inside of the others', with
// begin(i) before and end(i) after.
template <int K, class A, class Begin, class Inner, class Edge, class End>
GHOST_INLINE void over_pixels(const A& a, const Begin& begin, const Inner& inner, const Edge& edge, const End& end) {
  int64_t from, to;
  inner_pixels<K>(a, &from, &to);
  const auto at_edge = [&](int64_t i) {
    begin(i);
    for (int j = 0; j < K; j++)
      if (i + j >= K / 2 && i + j < a.width + K / 2) edge(i, j);
    end(i);
  };
  for (int64_t i = 0; i < from; i++) at_edge(i);
  for (int64_t i = from; i < to; i++) begin(i), inner(i), end(i);
  for (int64_t i = to; i < a.width; i++) at_edge(i);
}

// K weights in registers, under which pixels go by: each is loaded once. Calls put(i, sum) for `count` sums, the first
// of load(0) to load(K - 1).
template <class V, int K, class Load, class Put>
GHOST_INLINE void slide(int64_t count, const float* weight, int64_t weight_row, typename V::T bias, const Load& load,
                        const Put& put) {
  typename V::T k[K], under[K];
#pragma GCC unroll 7
  for (int j = 0; j < K; j++) k[j] = V::load(weight + j * weight_row);
#pragma GCC unroll 7
  for (int j = 0; j < K - 1; j++) under[j] = load(j);
  for (int64_t i = 0; i < count; i += K)
#pragma GCC unroll 7
    for (int u = 0; u < K; u++) {
      if (i + u >= count) return;
      under[(u + K - 1) % K] = load(i + u + K - 1);
      auto sum = bias;
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) sum = V::fma(under[(u + j) % K], k[j], sum);
      put(i + u, sum);
    }
}

template <int K>
void axis_conv(const AxisConv& all) {
  over_channels(all.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const AxisConv a = all;  // in registers: a store of a vector may alias the caller's struct
    const float* weight = a.weight + c;
    const auto bias = a.bias ? V::load(a.bias + c) : V::zero();
    const bool relu = a.relu;
    const auto store = [&](float* to, const auto& sum) {
      store_some<V>(to + c, relu ? V::max(V::zero(), sum) : sum, lanes);
    };
    if (a.tap_row == 0) {
      for (int64_t r = 0; r < a.count; r++) {
        const float* row = a.rows[r] + c;
        float* out = a.out + r * a.out_row;
        slide<V, K>(
            a.width, weight, a.weight_row, bias,
            [&](int64_t i) {
              const int64_t at = i - K / 2;
              return at >= 0 && at < a.width ? load_some<V>(row + at * a.in_pixel, lanes) : V::zero();
            },
            [&](int64_t i, const auto& sum) { store(out + i * a.out_pixel, sum); });
      }
    } else if (a.tap_row == 1) {
      for (int64_t i = 0; i < a.width; i++) {
        const int64_t at = i * a.in_pixel + c;
        float* out = a.out + i * a.out_pixel;
        slide<V, K>(
            a.count, weight, a.weight_row, bias, [&](int64_t r) { return load_some<V>(a.rows[r] + at, lanes); },
            [&](int64_t r, const auto& sum) { store(out + r * a.out_row, sum); });
      }
    } else {
      typename V::T k[K];
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) k[j] = V::load(weight + j * a.weight_row);
      for (int64_t r = 0; r < a.count; r++) {
        const float* p[K];
        first_pixels<K>(a, r, c, p);
        for (int64_t i = 0; i < a.width; i++) {
          auto sum = bias;
#pragma GCC unroll 7
          for (int j = 0; j < K; j++) sum = V::fma(load_some<V>(p[j] + i * a.in_pixel, lanes), k[j], sum);
          store(a.out + r * a.out_row + i * a.out_pixel, sum);
        }
      }
    }
  });
}

// The sums of a row stay in registers, and join compensated ones.
template <int K>
void axis_weight_grad(const AxisWeightGrad& all) {
  over_channels(all.channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const AxisWeightGrad a = all;
    Sum<V> total[K];
    for (int64_t r = 0; r < a.count; r++) {
      const float *p[K], *g = a.g[r] + c;
      first_pixels<K>(a, r, c, p);
      typename V::T sum[K], grad;
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) sum[j] = V::zero();
      over_pixels<K>(
          a, [&](int64_t i) { grad = load_some<V>(g + i * a.g_pixel, lanes); },
          [&](int64_t i) {
#pragma GCC unroll 7
            for (int j = 0; j < K; j++) sum[j] = V::fma(grad, load_some<V>(p[j] + i * a.in_pixel, lanes), sum[j]);
          },
          [&](int64_t i, int at) {
            const auto product = grad * load_some<V>(a.rows[r] + c + (i + at - K / 2) * a.in_pixel, lanes);
#pragma GCC unroll 7
            for (int j = 0; j < K; j++)  // else the sums would be in memory
              if (j == at) sum[j] += product;
          },
          [](int64_t) {});
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
