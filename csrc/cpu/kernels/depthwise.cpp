// Depthwise convolutions: channels across the lanes, weights in registers or a cache line away.
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::Depthwise;
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

// 3x3, S apart in the input: R output rows from x to end. Each input pixel is loaded once and feeds all rows and
// columns.
template <class V, int R, int S, class Lanes>
GHOST_INLINE void rows_3x3(const Depthwise& d, int64_t r, int64_t x, int64_t end, int64_t c, const typename V::T* k,
                           typename V::T bias, const Out<V, Lanes>& put) {
  using T = typename V::T;
  constexpr int kRows = (R - 1) * S + 3;
  const int64_t step = d.in_pixel, first = x > 0 ? x * S - 1 : 0;
  const float* p[kRows];
#pragma GCC unroll 5
  for (int i = 0; i < kRows; i++) p[i] = d.rows[r * S + i] + first * step + c;
  float* out = d.out + r * d.out_row + x * d.out_pixel + c;
  T in[kRows];
  const auto load_column = [&] {
#pragma GCC unroll 5
    for (int i = 0; i < kRows; i++) in[i] = V::load(p[i]), p[i] += step;
  };
  const auto add_taps = [&](int j, const T* from, T* to) {
#pragma GCC unroll 2
    for (int q = 0; q < R; q++)
      to[q] = V::fma(in[q * S + 2], k[6 + j], V::fma(in[q * S + 1], k[3 + j], V::fma(in[q * S], k[j], from[q])));
  };
  const auto put_rows = [&](const T* v) {
#pragma GCC unroll 2
    for (int q = 0; q < R; q++) put(out + q * d.out_row, v[q]);
    out += d.out_pixel;
  };
  const T none[2] = {bias, bias};
  T done[R], next[R], v[R];  // sums: `done` lacks the column to come, `next` has only the column before it
#pragma GCC unroll 2
  for (int q = 0; q < R; q++) next[q] = bias;
  if (x > 0) load_column(), add_taps(0, none, next);
  if constexpr (S == 1) {
    load_column(), add_taps(1, next, done), add_taps(0, none, next);
    for (int64_t at = x + 1; at < end; at++) {
      load_column(), add_taps(2, done, v), add_taps(1, next, done), add_taps(0, none, next);
      put_rows(v);
    }
    if (end < d.width) load_column(), add_taps(2, done, done);
    put_rows(done);
  } else {
    const int64_t whole = end < d.width ? end : d.in_width / 2;
    for (int64_t at = x; at < whole; at++) {
      load_column(), add_taps(1, next, done);
      load_column(), add_taps(2, done, v), add_taps(0, none, next);
      put_rows(v);
    }
    if (whole < end) load_column(), add_taps(1, next, done), put_rows(done);
  }
}

// 3x3 with stride S, CV vectors of channels. With two, those of one cache line, over so few pixels that lines stay in
// cache: pays with a stride, where there are more loads to an output.
template <class V, int S, int CV, class Lanes>
void block_3x3(const Depthwise& all, int64_t c, Lanes lanes) {
  constexpr int64_t kChunk = 28;
  const Depthwise d = all;  // in registers: a store of a vector may alias the caller's struct
  const Out<V, Lanes> put{lanes, d.relu};
  const int64_t chunks = CV > 1 ? (d.width + kChunk - 1) / kChunk : 1, chunk = (d.width + chunks - 1) / chunks;
  typename V::T k[9], bias;
  const auto load_weights = [&](int64_t at) {
#pragma GCC unroll 9
    for (int j = 0; j < 9; j++) k[j] = V::load(d.weight + j * d.weight_row + at);
    bias = d.bias ? V::load(d.bias + at) : V::zero();
  };
  if (CV == 1) load_weights(c);
  for (int64_t r = 0; r < d.count; r += 2)
    for (int64_t x = 0; x < d.width; x += chunk)
      for (int v = 0; v < CV; v++) {
        const int64_t at = c + v * V::lanes, end = d.width - x < chunk ? d.width : x + chunk;
        if (CV > 1) load_weights(at);
        if (r + 2 <= d.count)
          rows_3x3<V, 2, S>(d, r, x, end, at, k, bias, put);
        else
          rows_3x3<V, 1, S>(d, r, x, end, at, k, bias, put);
      }
}

// PX output pixels from x on, S apart in the input, which must all be within it, or need not (kEdge; then fewer may be
// wanted, too). A row's weights are in registers, and each input pixel is loaded once for all the taps that it is
// under.
template <class V, int K, int S, int PX, bool kEdge, class Lanes>
GHOST_INLINE void pixels(const Depthwise& d, int64_t r, int64_t x, int64_t c, int64_t in_width, typename V::T bias,
                         const Out<V, Lanes>& put) {
  constexpr int kColumns = (PX - 1) * S + K;
  using T = typename V::T;
  const int64_t step = d.in_pixel, w_row = d.weight_row, left = x * S - K / 2;
  T sum[PX];
#pragma GCC unroll 8
  for (int q = 0; q < PX; q++) sum[q] = bias;
  for (int i = 0; i < K; i++) {
    const float *p = d.rows[r * S + i] + left * step + c, *w = d.weight + i * K * w_row + c;
    T k[K];
#pragma GCC unroll 7
    for (int j = 0; j < K; j++) k[j] = V::load(w + j * w_row);
#pragma GCC unroll 32
    for (int at = 0; at < kColumns; at++) {
      const T v = V::load(!kEdge || (uint64_t)(left + at) < (uint64_t)in_width ? p : kOutside);
      p += step;
      asm("" : "+r"(p));  // else all addresses are computed ahead, and kept on the stack
#pragma GCC unroll 8
      for (int q = 0; q < PX; q++)
        if (at - q * S >= 0 && at - q * S < K) sum[q] = V::fma(v, k[at - q * S], sum[q]);
    }
  }
  const int wanted = kEdge && d.width - x < PX ? (int)(d.width - x) : PX;
#pragma GCC unroll 8
  for (int q = 0; q < PX; q++)
    if (!kEdge || q < wanted) put(d.out + r * d.out_row + (x + q) * d.out_pixel + c, sum[q]);
}

// Any kernel with stride S, CV vectors of channels at a time: those of one cache line.
template <class V, int K, int S, int CV, class Lanes>
void block(const Depthwise& all, int64_t c, Lanes lanes) {
  const Depthwise d = all;  // as above
  constexpr int P = K / 2, PX = kRegisters >= 32 || K <= 5 ? 8 : 6;
  const int64_t in_width = S == 1 ? d.width : d.in_width;
  typename V::T bias[CV];
  for (int v = 0; v < CV; v++) bias[v] = d.bias ? V::load(d.bias + c + v * V::lanes) : V::zero();
  const Out<V, Lanes> put{lanes, d.relu};
  for (int64_t r = 0; r < d.count; r++)
    for (int64_t x = 0; x < d.width; x += PX) {
      const bool within = x * S >= P && x + PX <= d.width && (x + PX - 1) * S + K - P <= in_width;
      for (int v = 0; v < CV; v++) {
        if (within)
          pixels<V, K, S, PX, false>(d, r, x, c + v * V::lanes, in_width, bias[v], put);
        else
          pixels<V, K, S, PX, true>(d, r, x, c + v * V::lanes, in_width, bias[v], put);
      }
    }
}

// Any kernel with any stride.
template <class V, int K, class Lanes>
void block_of_any_stride(const Depthwise& all, int64_t c, Lanes lanes) {
  const Depthwise d = all;  // as above
  const typename V::T bias = d.bias ? V::load(d.bias + c) : V::zero();
  const Out<V, Lanes> put{lanes, d.relu};
  for (int64_t r = 0; r < d.count; r++)
    for (int64_t x = 0; x < d.width; x++) {
      typename V::T sum = bias;
      for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) {
          const int64_t at = x * d.stride + j - K / 2;
          if (at >= 0 && at < d.in_width)
            sum = V::fma(V::load(d.rows[r * d.stride + i] + at * d.in_pixel + c),
                         V::load(d.weight + (i * K + j) * d.weight_row + c), sum);
        }
      put(d.out + r * d.out_row + x * d.out_pixel + c, sum);
    }
}

template <int K, int CV, class V, class Lanes>
GHOST_INLINE void any_stride(V, const Depthwise& d, int64_t c, Lanes lanes) {
  if (d.stride > 2) {
    for (int v = 0; v < CV; v++) block_of_any_stride<V, K>(d, c + v * V::lanes, lanes);
  } else if constexpr (K == 3) {
    if (d.stride == 2)
      block_3x3<V, 2, CV>(d, c, lanes);
    else
      for (int v = 0; v < CV; v++) block_3x3<V, 1, 1>(d, c + v * V::lanes, lanes);
  } else {
    if (d.stride == 1)
      block<V, K, 1, CV>(d, c, lanes);
    else
      block<V, K, 2, CV>(d, c, lanes);
  }
}

template <int K>
void depthwise(const Depthwise& d) {
  constexpr int CV = kLanes < 16 ? 16 / kLanes : 1;
  int64_t c = 0;
  for (; c + CV * kLanes <= d.channels; c += CV * kLanes) any_stride<K, CV>(Full{}, d, c, Whole<kLanes>{});
  over_channels(d.channels - c, [&](auto v, int64_t more, auto lanes) { any_stride<K, 1>(v, d, c + more, lanes); });
}

}  // namespace

extern "C" void GHOST_SYMBOL(depthwise)(const Depthwise& d) {
  if (d.width == 0) return;
  with_kernel(d.kernel, [&](auto size) { depthwise<size>(d); });
}
