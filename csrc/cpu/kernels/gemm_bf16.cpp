// Products whose weights are bfloat16, in panels of pairs: a row of a panel holds two columns of A,
// kPanel times two bfloat16. Compiled once more than the other kernels, for processors that multiply such pairs
// themselves; elsewhere, and where rounding A would cost more than that gains, pairs are widened.
#include "gemm.h"
#if defined(__AMX_BF16__) || defined(GHOST_EMULATED_TILES)
#define GHOST_TILES
#include "amx.h"
#endif

namespace {

constexpr int64_t kBlockPairs = kBlockColumns / 2;

#if defined(GHOST_TILES)

// Of few rows most of a tile would be empty, and widening them is no slower.
bool tiles_pay(const Gemm& all) { return all.rows > kTile / 4; }

#elif defined(__AVX512BF16__)

// Pairs of A by pairs of B, both bfloat16: the products are exact, the sums float32.
struct Bf16Pairs {
  static constexpr int kColumns = 2, kFloats = 1, kMostRows = Plain::kMostRows;
  template <class V>
  GHOST_INLINE typename V::T broadcast(const char* a) {
    int32_t x;
    std::memcpy(&x, a, sizeof x);
    if constexpr (V::lanes == 16)
      return (typename V::T)_mm512_set1_epi32(x);
    else
      return (typename V::T)_mm256_set1_epi32(x);
  }
  template <class V, class X>
  GHOST_INLINE typename V::T multiply(X x, typename V::T w, typename V::T v) {
    const auto first = first_lanes<V::lanes>(x);
    if constexpr (V::lanes == 16)
      return (typename V::T)_mm512_dpbf16_ps((__m512)v, (__m512bh)first, (__m512bh)w);
    else
      return (typename V::T)_mm256_dpbf16_ps((__m256)v, (__m256bh)first, (__m256bh)w);
  }
};

constexpr int kStep = 32;  // bfloat16 in a vector

GHOST_INLINE __m512 load_first(const float* p, int64_t n) {  // of 16; the others read as zero
  return _mm512_maskz_loadu_ps((__mmask16)(n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0), p);
}

// A run of `count` floats, times `scale`, rounded. Whole vectors are written.
template <bool kScaled>
void round_run(const float* from, const float* scale, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i += kStep) {
    __m512 low = load_first(from + i, count - i), high = load_first(from + i + 16, count - i - 16);
    if (kScaled) {
      low *= load_first(scale + i, count - i);
      high *= load_first(scale + i + 16, count - i - 16);
    }
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(to + i, &both, sizeof both);
  }
}

// A block of A as rows of pairs, `a_row` of them from one to the next; its runs end up next to each other, and half
// a pair is filled up with zero.
void round_block(const Block& g, int64_t columns, const float* scale, float* a, int64_t a_row) {
  for (int64_t i = 0; i < g.rows; i++) {
    uint16_t* to = (uint16_t*)(a + i * a_row);
    for (int64_t r = 0, k = 0; r < g.run_count; k += g.runs[r++].count) {
      const float* from = row_of(g, i) + g.runs[r].offset;
      if (scale)
        round_run<true>(from, scale + k, g.runs[r].count, to + k);
      else
        round_run<false>(from, nullptr, g.runs[r].count, to + k);
    }
    if (columns % 2) to[columns] = 0;
  }
}

void rounded_product(const Gemm& all, const Block& g, int64_t columns, const Source& s, float* c) {
  alignas(64) float a[kMostBlockRows * kBlockPairs + kStep];
  const int64_t a_row = ghost::padded(ghost::bf16_pairs(columns));
  round_block(g, columns, all.scale_k ? all.scale_k + 2 * s.first : nullptr, a, a_row);
  const Run whole{0, ghost::bf16_pairs(columns)};
  Block rounded = g;
  rounded.a = a, rounded.a_row = a_row, rounded.runs = &whole, rounded.run_count = 1, rounded.width = 0;
  source_product<Bf16Pairs>(all, rounded, s, c);
}

// A column of A is rounded once and multiplied by all of B's: with few of these, and short rows, it does not pay.
bool rounds(const Gemm& all) { return all.n > 24 || all.k >= 96; }

#endif

template <int L>
GHOST_INLINE typename Vec<L>::T first_of(typename Vec<L>::T pairs) {
  return (typename Vec<L>::T)((typename Vec<L>::I)pairs << 16);
}
template <int L>
GHOST_INLINE typename Vec<L>::T second_of(typename Vec<L>::T pairs) {
  return (typename Vec<L>::T)((typename Vec<L>::I)pairs & -65536);
}

// Two floats of A by a pair of B, which is widened on the way: for few rows, over which widening it once would not pay.
struct Widened {
  static constexpr int kColumns = 2, kFloats = 2, kMostRows = kMany ? 8 : 4;
  template <class V>
  struct Both {
    typename V::T first, second;
  };
  template <class V>
  GHOST_INLINE Both<V> broadcast(const char* a) {
    float x[2];
    std::memcpy(x, a, sizeof x);
    return {V::set(x[0]), V::set(x[1])};
  }
  template <class V, class X>
  GHOST_INLINE typename V::T multiply(const X& x, typename V::T w, typename V::T v) {
    constexpr int L = V::lanes;
    return V::fma(first_lanes<L>(x.second), second_of<L>(w), V::fma(first_lanes<L>(x.first), first_of<L>(w), v));
  }
};
constexpr int64_t kFewRows = 2 * Widened::kMostRows;

// A few rows, which are scaled rather than the weights, their runs next to each other, with a zero for half a pair.
void few_product(const Gemm& all, const Block& few, int64_t columns, const Source& s, float* c) {
  alignas(64) float a[kFewRows * kBlockColumns];
  const float* scale = all.scale_k ? all.scale_k + 2 * s.first : nullptr;
  const Run whole{0, 2 * ghost::bf16_pairs(columns)};
  for (int64_t i = 0; i < few.rows; i++) {
    float* to = a + i * kBlockColumns;
    to[whole.count - 1] = 0;
    for (int64_t r = 0, k = 0; r < few.run_count; r++) {
      const float* from = row_of(few, i) + few.runs[r].offset;
      for (const int64_t end = k + few.runs[r].count; k < end; k++) to[k] = *from++ * (scale ? scale[k] : 1.f);
    }
  }
  Block g = few;
  g.a = a, g.a_row = kBlockColumns, g.runs = &whole, g.run_count = 1, g.width = 0;
  source_product<Widened>(all, g, s, c);
}

// `columns` rows of kWidth floats of B, times `scale`, from rows of pairs.
template <int kWidth>
void widen_panel(const float* from, int64_t from_row, int64_t columns, const float* scale, float* to) {
  constexpr int kWide = kWidth < kLanes ? kWidth : kLanes;
  using V = Vec<kWide>;
  for (int64_t k = 0; k < columns; k += 2, from += from_row, to += 2 * kWidth)
#pragma GCC unroll 4
    for (int j = 0; j < kWidth; j += V::lanes) {
      const typename V::T pairs = V::load(from + j);
      auto first = first_of<V::lanes>(pairs), second = second_of<V::lanes>(pairs);
      if (scale) first *= scale[k], second *= k + 1 < columns ? scale[k + 1] : 0.f;
      V::store(to + j, first);
      V::store(to + kWidth + j, second);
    }
}

// What is under a tile, widened into a buffer.
Streams widened(const Source& s, int64_t n, int64_t tile, int64_t columns, const float* scale, float* buffer) {
  const Streams from = streams_under(s, n, tile);
  Streams to{};
  to.packed = true;
  for (int i = 0; i * kPanel < tile; i++) {
    to.row[i] = tight_row(i, (int)tile), to.at[i] = buffer;
    if (to.row[i] == 8)
      widen_panel<8>(from.at[i], from.row[i], columns, scale, buffer);
    else
      widen_panel<kPanel>(from.at[i], from.row[i], columns, scale, buffer);
    buffer += to.row[i] * kBlockColumns;
  }
  return to;
}

void widened_product(const Gemm& all, const Block& g, int64_t columns, const Source& s, float* c) {
  if (g.rows <= kFewRows) return few_product(all, g, columns, s, c);
  alignas(64) float b[kBlockColumns * (2 * kLanes + 8)];
  const float* scale = all.scale_k ? all.scale_k + 2 * s.first : nullptr;
  block_product<Plain>(all, g, 0, c, [&](int64_t n, int64_t tile) { return widened(s, n, tile, columns, scale, b); });
}

}  // namespace

extern "C" void GHOST_SYMBOL(gemm_bf16)(const Gemm& all) {
#if defined(GHOST_TILES)
  if (tiles_pay(all)) return product_by_tiles(all);
#elif defined(__AVX512BF16__)
  if (rounds(all))
    return over_blocks<2, false>(all, [&](const Block& g, int64_t columns, const Source& s, float* c) {
      rounded_product(all, g, columns, s, c);
    });
#endif
  over_blocks<2, true>(
      all, [&](const Block& g, int64_t columns, const Source& s, float* c) { widened_product(all, g, columns, s, c); });
}

extern "C" void GHOST_SYMBOL(release_tiles)() {
#if defined(GHOST_TILES)
  release_tiles();
#endif
}
