// What happens to rows between the convolutions: affine maps, activations, sums, and the backward of both.
#include "activation.h"
#include "kernels.h"
#include "simd.h"
#include "sums.h"

namespace {

using ghost::Act;
using ghost::Affine;
using ghost::NormBackward;

template <class V, class Lanes>
GHOST_INLINE typename V::T load_or(const float* p, int64_t c, Lanes lanes, float otherwise) {
  return p ? load_some<V>(p + c, lanes) : V::set(otherwise);
}

// Where an activation has no slopes the pointer may lead anywhere
GHOST_INLINE const float* slopes_of(const Affine& a) {
  return ghost::slope_kind(a.act) == ghost::kNoSlope ? nullptr : a.slope;
}

// An activation as a constant of the compiler's, so that the loop around it is specialised
template <Act A>
struct Constant {};

template <int L, Act A>
GHOST_INLINE typename Vec<L>::T activate(Constant<A>, Act, typename Vec<L>::T z, typename Vec<L>::T slope) {
  return Activation<L>::value(A, z, slope);
}
template <int L, Act A>
GHOST_INLINE typename Vec<L>::T activate_backward(Constant<A>, Act, typename Vec<L>::T grad, typename Vec<L>::T z,
                                                  typename Vec<L>::T slope) {
  return Activation<L>::backward(A, grad, z, slope);
}

// A function is called for each vector: beside the arithmetic of the later activations a call is little, and a loop of
// their own for each would double the library
struct Called {};

template <int L>
__attribute__((noinline)) typename Vec<L>::T activate(Called, Act act, typename Vec<L>::T z, typename Vec<L>::T slope) {
  return Activation<L>::value(act, z, slope);
}
template <int L>
__attribute__((noinline)) typename Vec<L>::T activate_backward(Called, Act act, typename Vec<L>::T grad,
                                                               typename Vec<L>::T z, typename Vec<L>::T slope) {
  return Activation<L>::backward(act, grad, z, slope);
}

constexpr bool has_loop(Act act) { return act <= ghost::act_hard_swish && act != ghost::kLeakyRelu; }

// Each call of f stands here once, or the compiler would not inline it
template <class F>
GHOST_INLINE void with_act(Act act, const F& f) {
  switch (act == ghost::kLeakyRelu ? ghost::kPrelu : act) {
#define GHOST_ACTIVATION(code, name, ...)                                               \
  case ghost::act_##name:                                                               \
    if constexpr (has_loop(ghost::act_##name)) return f(Constant<ghost::act_##name>{}); \
    break;
#include "activations.inc"
    default:
      break;
  }
  f(Called{});
}

constexpr int64_t kBlock = 8;  // pixels summed plainly before they join a compensated sum

GHOST_INLINE int64_t block_end(int64_t begin, int64_t pixels) {
  return begin + kBlock < pixels ? begin + kBlock : pixels;
}

}  // namespace

extern "C" void GHOST_SYMBOL(affine)(const float* z, int64_t z_pixel, const Affine& a, float* y, int64_t y_pixel,
                                     int64_t pixels, int64_t channels) {
  const bool scaled = a.scale, shifted = a.shift, added_first = a.added && !a.is_added_last,
             added_last = a.added && a.is_added_last;
  with_act(a.act, [&](auto act) {
    over_channels(channels, [&](auto v, int64_t c, auto lanes) {
      using V = decltype(v);
      const auto scale = load_or<V>(a.scale, c, lanes, 1.f), shift = load_or<V>(a.shift, c, lanes, 0.f);
      const auto slope = load_or<V>(slopes_of(a), c, lanes, 0.f);
      const float *from = z + c, *added = a.added ? a.added + c : nullptr;
      const int64_t added_pixel = a.added ? a.added_pixel : 0;
      float* to = y + c;
      for (int64_t i = 0; i < pixels; i++, from += z_pixel, added += added_pixel, to += y_pixel) {
        auto x = load_some<V>(from, lanes);
        if (scaled) x = x * scale;
        if (shifted) x = x + shift;
        if (added_first) x = x + load_some<V>(added, lanes);
        x = activate<V::lanes>(act, a.act, x, slope);
        if (added_last) x = x + load_some<V>(added, lanes);
        store_some<V>(to, x, lanes);
      }
    });
  });
}

// y = x * scale + shift, pixel after pixel: for maps, whose memory is so read and written in order. ``affine`` goes
// over rows in the first-level cache, a block of channels at a time, whose coefficients it keeps in registers.
extern "C" void GHOST_SYMBOL(scale_rows)(const float* x, int64_t x_pixel, const float* scale, const float* shift,
                                         float* y, int64_t y_pixel, int64_t pixels, int64_t channels) {
  for (int64_t i = 0; i < pixels; i++, x += x_pixel, y += y_pixel)
    over_channels(channels, [&](auto v, int64_t c, auto lanes) {
      using V = decltype(v);
      const auto scaled = load_some<V>(x + c, lanes) * load_some<V>(scale + c, lanes);
      store_some<V>(y + c, shift ? scaled + load_some<V>(shift + c, lanes) : scaled, lanes);
    });
}

extern "C" void GHOST_SYMBOL(add)(const float* x, int64_t x_pixel, const float* y, int64_t y_pixel, float* out,
                                  int64_t out_pixel, int64_t pixels, int64_t channels) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const float *a = x + c, *b = y + c;
    float* to = out + c;
    for (int64_t i = 0; i < pixels; i++, a += x_pixel, b += y_pixel, to += out_pixel)
      store_some<V>(to, load_some<V>(a, lanes) + load_some<V>(b, lanes), lanes);
  });
}

extern "C" void GHOST_SYMBOL(take_largest)(const float* from, int64_t from_pixel, float* to, int64_t to_pixel,
                                           int64_t pixels, int64_t channels) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const float* a = from + c;
    float* b = to + c;
    for (int64_t i = 0; i < pixels; i++, a += from_pixel, b += to_pixel) {
      const auto x = load_some<V>(a, lanes), m = load_some<V>(b, lanes);
      store_some<V>(b, x == x ? V::max(x, m) : x, lanes);  // max gives m where that is NaN
    }
  });
}

extern "C" void GHOST_SYMBOL(scale_panels)(const float* from, const float* scale, int64_t k, int64_t n, float* to) {
  for (int64_t c = 0; c < n; c += ghost::kPanel) {
    const int64_t width = n - c <= 8 ? 8 : ghost::kPanel;
    for (int64_t j = 0; j < k; j++, from += width, to += width)
      over_channels(width, [&](auto v, int64_t i, auto lanes) {
        using V = decltype(v);
        store_some<V>(to + i, load_some<V>(from + i, lanes) * V::set(scale[j]), lanes);
      });
  }
}

extern "C" void GHOST_SYMBOL(sum)(const float* x, int64_t x_pixel, int64_t pixels, int64_t channels, float* sum) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    Sum<V> s;
    for (int64_t b = 0; b < pixels; b += kBlock) {
      auto part = V::zero();
      for (int64_t i = b; i < block_end(b, pixels); i++) part += load_some<V>(x + i * x_pixel + c, lanes);
      Sum<V>::add(s, part);
    }
    add_to<V>(sum, channels, c, s, lanes);
  });
}

extern "C" void GHOST_SYMBOL(sum_product)(const float* x, int64_t x_pixel, const float* y, int64_t y_pixel,
                                          int64_t pixels, int64_t channels, float* sum) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    Sum<V> s;
    for (int64_t b = 0; b < pixels; b += kBlock) {
      auto part = V::zero();
      for (int64_t i = b; i < block_end(b, pixels); i++)
        part = V::fma(load_some<V>(x + i * x_pixel + c, lanes), load_some<V>(y + i * y_pixel + c, lanes), part);
      Sum<V>::add(s, part);
    }
    add_to<V>(sum, channels, c, s, lanes);
  });
}

namespace {

// A sum in double of sums of a few pixels, half a vector at a time: statistics may be small beside the values that they
// are of.
template <class V>
struct WideSum {
  static constexpr int kHalf = V::lanes / 2;
  using D = typename Types<V::lanes>::HalfDoubles;
  D low{}, high{};

  GHOST_INLINE void add(WideSum& s, typename V::T v) {
    double wide[V::lanes];
    for (int i = 0; i < V::lanes; i++) wide[i] = (double)v[i];
    D low, high;
    std::memcpy(&low, wide, sizeof(D));
    std::memcpy(&high, wide + kHalf, sizeof(D));
    s.low += low, s.high += high;
  }
  GHOST_INLINE Sum<V> as_floats(const WideSum& s) {
    Sum<V> out;
    for (int i = 0; i < V::lanes; i++) {
      const double d = i < kHalf ? s.low[i] : s.high[i - kHalf];
      out.sum[i] = (float)d;
      out.low[i] = (float)((double)out.sum[i] - d);
    }
    return out;
  }
};

}  // namespace

// As sum, but every pixel is added in double: for gradients, which may nearly cancel.
extern "C" void GHOST_SYMBOL(sum_in_double)(const float* x, int64_t x_pixel, int64_t pixels, int64_t channels,
                                            float* sum) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    WideSum<V> s;
    for (int64_t i = 0; i < pixels; i++) WideSum<V>::add(s, load_some<V>(x + i * x_pixel + c, lanes));
    add_to<V>(sum, channels, c, WideSum<V>::as_floats(s), lanes);
  });
}

extern "C" void GHOST_SYMBOL(moments)(const float* z, int64_t z_pixel, int64_t pixels, int64_t channels,
                                      const float* origin, float* sum, float* square) {
  over_channels(channels, [&](auto v, int64_t c, auto lanes) {
    using V = decltype(v);
    const auto about = load_some<V>(origin + c, lanes);
    WideSum<V> s, q;
    for (int64_t b = 0; b < pixels; b += kBlock) {
      auto s0 = V::zero(), s1 = s0, q0 = s0, q1 = s0;  // pairs: an addition waits for the one before
      const auto add = [&](int64_t i, auto& sum, auto& square) {
        const auto d = load_some<V>(z + i * z_pixel + c, lanes) - about;
        sum += d;
        square = V::fma(d, d, square);
      };
      const int64_t end = block_end(b, pixels);
      int64_t i = b;
      for (; i + 2 <= end; i += 2) add(i, s0, q0), add(i + 1, s1, q1);
      if (i < end) add(i, s0, q0);
      WideSum<V>::add(s, s0 + s1);
      WideSum<V>::add(q, q0 + q1);
    }
    add_to<V>(sum, channels, c, WideSum<V>::as_floats(s), lanes);
    add_to<V>(square, channels, c, WideSum<V>::as_floats(q), lanes);
  });
}

namespace {

/// One block of channels of a NormBackward: its coefficients, and g, a and z - mean of a pixel.
template <class V, class Lanes, class Code>
struct NormBlock {
  using T = typename V::T;
  const NormBackward& n;
  int64_t c;
  Lanes lanes;
  T scale, shift, slope, mean;
  bool scaled, shifted, twice;

  NormBlock(const NormBackward& n, int64_t c, Lanes lanes)
      : n(n),
        c(c),
        lanes(lanes),
        scale(load_or<V>(n.affine.scale, c, lanes, 1.f)),
        shift(load_or<V>(n.affine.shift, c, lanes, 0.f)),
        slope(load_or<V>(slopes_of(n.affine), c, lanes, 0.f)),
        mean(load_or<V>(n.mean, c, lanes, 0.f)),
        scaled(n.affine.scale),
        shifted(n.affine.shift),
        twice(n.grad_too) {}

  struct Pixel {
    T grad, a, g, centred;
  };
  GHOST_INLINE Pixel at(const NormBlock& b, int64_t i) {
    const NormBackward& n = b.n;
    const T z = load_some<V>(n.z + i * n.z_pixel + b.c, b.lanes);
    T grad = load_some<V>(n.grad + i * n.grad_pixel + b.c, b.lanes), a = z;
    if (b.twice) grad += load_some<V>(n.grad_too + i * n.grad_too_pixel + b.c, b.lanes);
    if (b.scaled) a = a * b.scale;  // as `affine` forms it, so that the forward's and the backward's masks agree
    if (b.shifted) a = a + b.shift;
    return {grad, a, activate_backward<V::lanes>(Code{}, b.n.affine.act, grad, a, b.slope), z - b.mean};
  }
};

template <class Code, class F>
GHOST_INLINE void norm_blocks(const NormBackward& n, Code, const F& f) {
  over_channels(n.channels, [&](auto v, int64_t c, auto lanes) {
    using Block = NormBlock<decltype(v), decltype(lanes), Code>;
    const NormBackward copy = n;  // in registers: a store of a vector may alias the caller's struct
    f(v, Block(copy, c, lanes));
  });
}

}  // namespace

extern "C" void GHOST_SYMBOL(norm_backward_sums)(const NormBackward& all) {
  with_act(all.affine.act, [&](auto act) {
    norm_blocks(all, act, [](auto v, const auto& block) {
      using V = decltype(v);
      const NormBackward& n = block.n;
      Sum<V> sum_g, sum_gz, sum_slope;
      for (int64_t b = 0; b < n.pixels; b += kBlock) {
        auto g0 = V::zero(), g1 = g0, gz0 = g0, gz1 = g0, slopes = g0;  // pairs: an addition waits for the one before
        const int64_t end = block_end(b, n.pixels);
        int64_t i = b;
        const auto add = [&](int64_t at, auto& g, auto& gz) {
          const auto p = block.at(block, at);
          g += p.g;
          gz = V::fma(p.g, p.centred, gz);
          if (n.out) store_some<V>(n.out + at * n.out_pixel + block.c, p.g, block.lanes);
          if (n.sum_slope) slopes += p.a > 0.f ? V::zero() : p.grad * p.a;
        };
        for (; i + 2 <= end; i += 2) add(i, g0, gz0), add(i + 1, g1, gz1);
        if (i < end) add(i, g0, gz0);
        Sum<V>::add(sum_g, g0 + g1);
        Sum<V>::add(sum_gz, gz0 + gz1);
        Sum<V>::add(sum_slope, slopes);
      }
      add_to<V>(n.sum_g, n.channels, block.c, sum_g, block.lanes);
      add_to<V>(n.sum_gz, n.channels, block.c, sum_gz, block.lanes);
      if (n.sum_slope) add_to<V>(n.sum_slope, n.channels, block.c, sum_slope, block.lanes);
    });
  });
}

extern "C" void GHOST_SYMBOL(norm_backward)(const NormBackward& all) {
  with_act(all.affine.act, [&](auto act) {
    norm_blocks(all, act, [](auto v, const auto& block) {
      using V = decltype(v);
      const NormBackward& n = block.n;
      const auto k = load_or<V>(n.k, block.c, block.lanes, 1.f);
      const auto c0 = load_or<V>(n.c0, block.c, block.lanes, 0.f), c1 = load_or<V>(n.c1, block.c, block.lanes, 0.f);
      for (int64_t i = 0; i < n.pixels; i++) {
        const auto p = block.at(block, i);
        store_some<V>(n.out + i * n.out_pixel + block.c, k * (p.g - c0 - p.centred * c1), block.lanes);
      }
    });
  });
}

namespace {

// GCC converts eight floats in two halves.
template <class Wide, class V>
GHOST_INLINE void to_double(const V& v, Wide& out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 32) {
    out = (Wide)_mm512_maskz_cvtps_pd((__mmask8)-1, (__m256)v);
    return;
  }
#endif
  out = __builtin_convertvector(v, Wide);
}

// Products of N rows with x, each plus its bias; sums in double: a gate's logits may cancel.
template <int N>
GHOST_INLINE void multiply_rows(const float* w, int64_t columns, const float* x, const float* bias, float* y) {
  using F = Vec<kLanes / 2 >= 4 ? kLanes / 2 : 4>;
  typedef double Wide __attribute__((vector_size(8 * F::lanes)));
  Wide sums[N] = {};
  const auto add = [&](int64_t c, auto lanes) {
    Wide a, b;
    to_double(load_some<F>(x + c, lanes), b);
    for (int r = 0; r < N; r++) {
      to_double(load_some<F>(w + r * columns + c, lanes), a);
      sums[r] += a * b;
    }
  };
  int64_t c = 0;
  for (; c + F::lanes <= columns; c += F::lanes) add(c, Whole<F::lanes>{});
  if (c < columns) add(c, (int)(columns - c));
  for (int r = 0; r < N; r++) {
    double lanes[F::lanes];
    std::memcpy(lanes, &sums[r], sizeof lanes);
    for (int half = F::lanes / 2; half; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    y[r] = (float)(lanes[0] + (bias ? bias[r] : 0.0));
  }
}

}  // namespace

extern "C" void GHOST_SYMBOL(matvec)(const float* w, int64_t rows, int64_t columns, const float* x, const float* bias,
                                     float* y) {
  constexpr int kRows = 4;  // sums that do not wait for each other
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    multiply_rows<kRows>(w + r * columns, columns, x, bias ? bias + r : bias, y + r);
  for (; r < rows; r++) multiply_rows<1>(w + r * columns, columns, x, bias ? bias + r : bias, y + r);
}

extern "C" double GHOST_SYMBOL(fma_chain)(int64_t steps) {
  constexpr int kChains = kRegisters >= 32 ? 24 : 12;
  Full::T x[kChains];
  for (int i = 0; i < kChains; i++) x[i] = Full::set(1.f + i);
  Full::T a = Full::set(0.999f), b = Full::set(0.001f);
  for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) x[i] = Full::fma(x[i], a, b);
  }
  float total = 0;
  for (int i = 0; i < kChains; i++) total += x[i][0];
  volatile float keep = total;  // the chains must be computed
  (void)keep;
  return 2.0 * kChains * kLanes * (double)steps;
}
