// Vectors of L floats over GCC's vector extensions, the same source for every instruction set.
//
// Included by kernel sources only. Everything has internal linkage: an external template would be merged by the
// linker, and the copy that it keeps may be another instruction set's.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GHOST_INLINE static inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__) || defined(GHOST_SIXTEEN_LANES)  // the latter: AVX-512's code by other means, for tests
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif
constexpr bool kHalves = kLanes >= 8;  // vectors of kLanes / 2 for narrow tails
constexpr int kHalf = kHalves ? kLanes / 2 : kLanes;

template <int L>
struct Types;  // spelled out: GCC drops a vector_size that depends on a template's parameter
template <>
struct Types<4> {
  typedef float T __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef double HalfDoubles __attribute__((vector_size(16)));
};
template <>
struct Types<8> {
  typedef float T __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));
  typedef double HalfDoubles __attribute__((vector_size(32)));
};
template <>
struct Types<16> {
  typedef float T __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef double HalfDoubles __attribute__((vector_size(64)));
};

template <int L>
struct Vec {
  using T = typename Types<L>::T;
  using I = typename Types<L>::I;
  static constexpr int lanes = L;

  GHOST_INLINE T load(const float* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  GHOST_INLINE void store(float* p, T v) { std::memcpy(p, &v, sizeof v); }
  GHOST_INLINE T set(float x) { return x - T{}; }  // exact, also for -0, and folded to a broadcast
  GHOST_INLINE T zero() { return T{}; }
  GHOST_INLINE T fma(T a, T b, T c) { return a * b + c; }  // contracted where the machine has it

  // max and min give the second operand when either is NaN, as x86 does: put the value that may be NaN there
  GHOST_INLINE T max(T bound, T x) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return (T)_mm512_maskz_max_ps((__mmask16)-1, (__m512)bound, (__m512)x);
#endif
#if defined(__AVX2__)
    if constexpr (L == 8) return (T)_mm256_max_ps((__m256)bound, (__m256)x);
#endif
    return bound > x ? bound : x;
  }
  GHOST_INLINE T min(T bound, T x) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return (T)_mm512_maskz_min_ps((__mmask16)-1, (__m512)bound, (__m512)x);
#endif
#if defined(__AVX2__)
    if constexpr (L == 8) return (T)_mm256_min_ps((__m256)bound, (__m256)x);
#endif
    return bound < x ? bound : x;
  }

  // the first n lanes, 0 < n <= L; the others read as zero and are not stored
  GHOST_INLINE T load(const float* p, int n) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return (T)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    if constexpr (L == 8) return (T)_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1), p);
#endif
    T v{};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
  }
  GHOST_INLINE void store(float* p, T v, int n) {
#if defined(__AVX512F__)
    if constexpr (L == 16) return _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
    if constexpr (L == 8) return _mm256_mask_storeu_ps(p, (__mmask8)((1u << n) - 1), (__m256)v);
#endif
    for (int i = 0; i < n; i++) p[i] = v[i];
  }

  // v 2^n for a whole n, where 2^n itself may be outside of the normal numbers: one instruction of AVX-512, else the
  // product with two factors.
  GHOST_INLINE T scale(T v, T n) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
    if constexpr (L == 16) return (T)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)v, (__m512)n);
    if constexpr (L == 8) return (T)_mm256_maskz_scalef_ps((__mmask8)-1, (__m256)v, (__m256)n);
    if constexpr (L == 4) return (T)_mm_maskz_scalef_ps((__mmask8)-1, (__m128)v, (__m128)n);
#endif
    const I whole = __builtin_convertvector(n, I), low = whole >> 1, high = whole - low;
    return v * (T)((low + 127) << 23) * (T)((high + 127) << 23);
  }

  // e^x = (1 + r + r^2 q) 2^n, where x = n ln 2 + r, and q is the polynomial of degree 4 that keeps the relative error
  // below 3.1e-9, a twentieth of an ulp. NaN stays in r.
  struct Power {
    T n, r, q;
  };
  GHOST_INLINE Power power(T x) {
    const T clamped = max(set(-104.f), min(set(89.f), x));
    const T magic = set(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
    const T shifted = fma(clamped, set(1.44269504088896341f), magic);
    const T n = shifted - magic;
    T r = fma(n, set(-0.693359375f), clamped);
    r = fma(n, set(2.12194440e-4f), r);
    T q = set(1.38145402e-3f);
    q = fma(q, r, set(8.36874511e-3f));
    q = fma(q, r, set(4.16683908e-2f));
    q = fma(q, r, set(1.66665204e-1f));
    q = fma(q, r, set(4.99999934e-1f));
    return {n, r, q};
  }

  // To about 1 ulp. inf and 0 past the range, NaN stays
  GHOST_INLINE T exp(T x) {
    const Power e = power(x);
    return scale(fma(fma(e.q, e.r, set(1.f)), e.r, set(1.f)), e.n);
  }

  // e^x - 1, which is x near 0
  GHOST_INLINE T expm1(T x) {
    const Power e = power(x);
    const T whole = scale(set(1.f), e.n), result = fma(fma(e.q, e.r * e.r, e.r), whole, whole - 1.f);
    return x == x ? (x == 0.f ? x : x > 88.f ? exp(x) : result) : x;
  }

  GHOST_INLINE T abs(T x) { return (T)((I)x & 0x7fffffff); }
  GHOST_INLINE T copy_sign(T x, T sign) { return (T)(((I)x & 0x7fffffff) | ((I)sign & (int32_t)0x80000000)); }

  // A polynomial near 0, else 1 - 2 / (e^2|x| + 1) (Cephes tanhf)
  GHOST_INLINE T tanh(T x) {
    const T magnitude = abs(x), s = x * x;
    T p = set(-5.70498872745e-3f);
    p = fma(p, s, set(2.06390887954e-2f));
    p = fma(p, s, set(-5.37397155531e-2f));
    p = fma(p, s, set(1.33314422036e-1f));
    p = fma(p, s, set(-3.33332819422e-1f));
    const T far = 1.f - 2.f / (exp(magnitude + magnitude) + 1.f);
    return copy_sign(magnitude < 0.625f ? fma(p * s, magnitude, magnitude) : far, x);
  }

  // To about 1 ulp: a polynomial near 0, else 1 - e^polynomial
  GHOST_INLINE T erf(T x) {
    const T magnitude = abs(x), s = x * x;
    T p = set(-5.96761703e-4f);
    p = fma(p, s, set(4.99119423e-3f));
    p = fma(p, s, set(-2.67681349e-2f));
    p = fma(p, s, set(1.12819925e-1f));
    p = fma(p, s, set(-3.76125336e-1f));
    p = fma(p, s, set(1.28379166e-1f));
    const T t = min(set(4.f), magnitude), square = t * t;  // erf is 1 from 3.92 on
    T q = fma(set(-1.72853470e-5f), t, set(3.83197126e-4f));
    q = fma(q, square, fma(set(-3.88396438e-3f), t, set(2.42546219e-2f)));
    q = fma(q, t, set(-1.06777877e-1f));
    q = fma(q, t, set(-6.34846687e-1f));
    q = fma(q, t, set(-1.28717512e-1f));
    q = fma(q, t, -t);
    return magnitude < 0.927734375f ? fma(p, x, x) : copy_sign(1.f - exp(q), x);
  }
};

alignas(64) constexpr float kOutside[kLanes] = {};  // what a tap outside of a row reads

using Full = Vec<kLanes>;
using Half = Vec<kHalf>;

// Lanes of a and b by turns: of their lower halves, of their upper halves.
template <int L>
GHOST_INLINE typename Vec<L>::T interleave_low(typename Vec<L>::T a, typename Vec<L>::T b) {
  if constexpr (L == 16)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else if constexpr (L == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
template <int L>
GHOST_INLINE typename Vec<L>::T interleave_high(typename Vec<L>::T a, typename Vec<L>::T b) {
  if constexpr (L == 16)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  else if constexpr (L == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

// L x L floats turned about the diagonal, between rows of any stride; the columns that are written are scaled. Each of
// the log2 L rounds interleaves row i with row i + L / 2.
template <int L>
GHOST_INLINE void transpose(const float* from, int64_t from_row, float* to, int64_t to_row, typename Vec<L>::T scale) {
  using V = Vec<L>;
  typename V::T r[L], next[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) r[i] = V::load(from + i * from_row);
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; i++) {
      next[2 * i] = interleave_low<L>(r[i], r[i + L / 2]);
      next[2 * i + 1] = interleave_high<L>(r[i], r[i + L / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) r[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) V::store(to + i * to_row, r[i] * scale);
}

// The first L lanes of a vector: a smaller register, without an instruction.
template <int L, class T>
GHOST_INLINE typename Vec<L>::T first_lanes(T v) {
  typename Vec<L>::T out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}

template <int L>
struct Whole {  // a number known at compile time: of lanes, so that full vectors take no masks, or a kernel's size
  constexpr operator int() const { return L; }
};

// Runs f(size) for the sizes of kernels that there are, each known at compile time.
template <class F>
GHOST_INLINE void with_kernel(int64_t size, const F& f) {
  switch (size) {
    case 1:
      return f(Whole<1>{});
    case 3:
      return f(Whole<3>{});
    case 5:
      return f(Whole<5>{});
    default:
      return f(Whole<7>{});
  }
}

// Runs f(vector type, first channel, lanes) over the channels: full vectors, then one narrow one for the tail.
template <class F>
GHOST_INLINE void over_channels(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) f(Full{}, c, Whole<kLanes>{});
  const int left = (int)(channels - c);
  if (left == kHalf)
    f(Half{}, c, Whole<kHalf>{});
  else if (left > kHalf)
    f(Full{}, c, left);
  else if (left > 0)
    f(Half{}, c, left);
}

}  // namespace
