// Products of pairs by AMX: 16 rows of a panel of pairs are a tile as they are, and rows of A become tiles when they
// are rounded. Internal linkage, as simd.h says.
#pragma once
#include "gemm.h"
#include "tiles.h"

namespace {

constexpr int64_t kTwo = 2 * kTile;  // rows or columns of sums that are made at once; columns of A in a tile
static_assert(kTile == kPanel);

// Where a block of A goes: tiles one after the other, the last of which ends with the block and has zeros where it
// would repeat the one before, so that no more of B is read than there is.
struct Depth {
  int64_t columns, pairs, tiles;
  explicit Depth(int64_t columns)
      : columns(columns), pairs(ghost::bf16_pairs(columns)), tiles((pairs + kTile - 1) / kTile) {}
  int64_t first_pair(int64_t tile) const {  // that a tile is multiplied by
    const int64_t last = pairs < kTile ? 0 : pairs - kTile;
    return tile * kTile < last ? tile * kTile : last;
  }
};

// TilePart of a run that is in one tile: lanes of a row, from `from` on in A. What is not stored is not of this part.
struct TilePart {
  int64_t from, to, column;
  uint32_t lanes, stored;
};

int64_t parts_of(const Block& g, const Depth& depth, TilePart* out) {
  int64_t found = 0;
  for (int64_t tile = 0; tile < depth.tiles; tile++) {
    const int64_t column = 2 * depth.first_pair(tile), begin = tile * kTwo;
    const int64_t end = begin + kTwo < depth.columns ? begin + kTwo : depth.columns;
    bool first = true;
    for (int64_t r = 0, at = 0; r < g.run_count; at += g.runs[r++].count) {
      const int64_t from = at > begin ? at : begin, all = at + g.runs[r].count, to = all < end ? all : end;
      if (from >= to) continue;
      const uint32_t lanes = lanes_between(from - column, to - column);
      out[found++] = {g.runs[r].offset + column - at, tile * kTile, column, lanes, first ? ~uint32_t{0} : lanes};
      first = false;
    }
  }
  return found;
}

// Rows of a part, `a` the first of them, times `scale`, rounded.
template <bool kScaled>
void round_part(const TilePart& p, const float* a, int64_t a_row, int64_t rows, const float* scale, float* out,
                int64_t out_row) {
  const uint32_t low = p.lanes & 0xffff, high = p.lanes >> 16, stored = p.stored;
  Lanes::T low_scale{}, high_scale{};
  if (kScaled) low_scale = load_lanes(scale + p.column, low), high_scale = load_lanes(scale + p.column + kTile, high);
  const float* from = a + p.from;
  float* to = out + p.to;
#pragma GCC unroll 4
  for (int64_t i = 0; i < rows; i++, from += a_row, to += out_row) {
    Lanes::T first = load_lanes(from, low), second = load_lanes(from + kTile, high);
    if (kScaled) first *= low_scale, second *= high_scale;
    store_rounded(to, stored, first, second);
  }
}

// Sums of kRows by kColumns tiles. Tiles of B stay where there is one of each: `held` says that they are there.
template <int kRows, int kColumns>
GHOST_INLINE void multiply_tiles(const float* a, int64_t a_row, const float* const b[2], bool held, const Depth& depth,
                                 ghost::Ahead& ahead, float* sums) {
  const int64_t a_bytes = a_row * (int64_t)sizeof(float);
  zero_tile<0>();
  if (kColumns > 1) zero_tile<1>();
  if (kRows > 1) zero_tile<2>();
  if (kRows > 1 && kColumns > 1) zero_tile<3>();
  for (int64_t i = 0; i < depth.tiles; i++, a += kTile) {
    if (!held) {
      const int64_t at = depth.first_pair(i) * kPanel;
      load_tile<6>(b[0] + at, kTileBytes);
      if (kColumns > 1) load_tile<7>(b[1] + at, kTileBytes);
    }
    load_tile<4>(a, a_bytes);
    add_product<0, 4, 6>();
    if (kColumns > 1) add_product<1, 4, 7>();
    if (kRows > 1) {
      load_tile<5>(a + kTile * a_row, a_bytes);
      add_product<2, 5, 6>();
      if (kColumns > 1) add_product<3, 5, 7>();
    }
    for (int j = 0; j < kRows * kColumns && ahead.at < ahead.end; j++, ahead.at += kTileBytes)
      __builtin_prefetch(ahead.at, 0, 2);
  }
  constexpr int64_t kBytes = kTwo * sizeof(float);
  store_tile<0>(sums, kBytes);
  if (kColumns > 1) store_tile<1>(sums + kTile, kBytes);
  if (kRows > 1) store_tile<2>(sums + kTile * kTwo, kBytes);
  if (kRows > 1 && kColumns > 1) store_tile<3>(sums + kTile * kTwo + kTile, kBytes);
}

// Rows of sums, of `columns` columns in kVectors vectors, into C.
template <int kVectors, bool kAccumulate>
void store_sums(const float* sums, int64_t rows, int64_t columns, const float* bias, bool relu, float* c,
                int64_t c_row) {
  constexpr int kLast = kVectors - 1;
  const int64_t left = columns - kLast * kTile;
  const uint32_t lanes = lanes_between(0, left < kTile ? left : kTile);
  Lanes::T base[kVectors] = {};
  if (bias) {
    if (kLast) base[0] = Lanes::load(bias);
    base[kLast] = load_lanes(bias + kLast * kTile, lanes);
  }
  const Lanes::T least = Lanes::set(relu ? 0.f : -__builtin_inff());
#pragma GCC unroll 4
  for (int64_t i = 0; i < rows; i++, sums += kTwo, c += c_row) {
    Lanes::T v[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; j++) v[j] = Lanes::load(sums + j * kTile) + base[j];
    if (kAccumulate) {
      if (kLast) v[0] += Lanes::load(c);
      v[kLast] += load_lanes(c + kLast * kTile, lanes);
    }
    if (kLast) Lanes::store(c, Lanes::max(least, v[0]));
    store_lanes(c + kLast * kTile, lanes, Lanes::max(least, v[kLast]));
  }
}

// Panels of B as tiles need them: where they are, or copies that are filled up with zeros.
class Panels {
 public:
  Panels(const Source& s, const Depth& depth) : s_(s), depth_(depth), last_(s.n_end % kPanel ? s.n_end - 8 : s.n_end) {}
  /// From one `prepare` to the next.
  int64_t columns_at_once() const { return depth_.pairs < kTile ? kCopies * kPanel : s_.n_end; }
  void prepare(int64_t begin, int64_t end) {
    begin_ = begin;
    if (depth_.pairs < kTile)
      for (int64_t n = begin; n < end; n += kPanel) copy(n, copies_ + (n - begin) * kTile);
    else if (end > last_)
      copy(last_, copies_);
  }
  const float* at(int64_t n) const {
    if (depth_.pairs < kTile) return copies_ + (n - begin_) * kTile;
    return n == last_ ? copies_ : place(n);
  }

 private:
  static constexpr int64_t kPairs = kBlockColumns / 2, kCopies = kPairs / kTile;
  const Source& s_;
  const Depth& depth_;
  const int64_t last_;  // a panel of 8 columns, if there is one
  int64_t begin_ = 0;
  alignas(64) float copies_[kPairs * kPanel];

  const float* place(int64_t n) const { return s_.b + n * s_.depth + s_.first * (n == last_ ? 8 : kPanel); }
  void copy(int64_t n, float* to) const {
    const int64_t row = n == last_ ? 8 : kPanel;
    const float* from = place(n);
    for (int64_t k = 0; k < depth_.pairs; k++, from += row)
      Lanes::store(to + k * kPanel, load_lanes(from, lanes_between(0, row)));
    for (int64_t k = depth_.pairs; k < kTile; k++) Lanes::store(to + k * kPanel, Lanes::zero());
  }
};

void tile_block(const Gemm& all, const Block& g, int64_t columns, const Source& s, float* c) {
  constexpr int64_t kPairs = kBlockColumns / 2;
  alignas(64) float a[kTwo * kPairs], sums[2][kTwo * kTwo];
  const Depth depth(columns);
  const int64_t a_row = depth.tiles * kTile, writable = all.c_padded ? s.n_end : all.n;
  TilePart parts[kMostRuns + kPairs / kTile];
  const int64_t part_count = parts_of(g, depth, parts);
  Panels panels(s, depth);
  ghost::Ahead none{}, &ahead = g.ahead ? *g.ahead : none;
  int64_t last_row = 0, last_n = 0, made = 0;
  Block finished = g;
  const auto store = [&] {
    const float* from = sums[(made - 1) % 2];
    const int64_t rows = g.rows - last_row < kTwo ? g.rows - last_row : kTwo, left = writable - last_n;
    const float* bias = bias_at(all, g, last_n);
    float* to = c + last_row * all.c_row + last_n;
    if (last_n + kTile < all.n)
      g.accumulate ? store_sums<2, true>(from, rows, left, bias, g.relu, to, all.c_row)
                   : store_sums<2, false>(from, rows, left, bias, g.relu, to, all.c_row);
    else
      g.accumulate ? store_sums<1, true>(from, rows, left, bias, g.relu, to, all.c_row)
                   : store_sums<1, false>(from, rows, left, bias, g.relu, to, all.c_row);
    if (!g.finish) return;
    set_column(all, finished, last_n);
    finish_tile(finished, last_row, rows, kTwo, to, all.c_row);
  };
  for (int64_t begin = 0, end; begin < all.n; begin = end) {
    end = all.n - begin < panels.columns_at_once() ? all.n : begin + panels.columns_at_once();
    panels.prepare(begin, end);
    for (int64_t row = 0; row < g.rows; row += kTwo) {
      const int64_t rows = g.rows - row < kTwo ? g.rows - row : kTwo;
      for (int64_t at = 0, line; at < rows; at += line) {
        const float* from = row_of(g, row + at);
        line = rows_in_line(g, row + at) < rows - at ? rows_in_line(g, row + at) : rows - at;
        for (int64_t i = 0; i < part_count; i++)
          all.scale_k
              ? round_part<true>(parts[i], from, g.a_row, line, all.scale_k + 2 * s.first, a + at * a_row, a_row)
              : round_part<false>(parts[i], from, g.a_row, line, nullptr, a + at * a_row, a_row);
      }
      const bool held = row > 0 && depth.tiles == 1 && end - begin <= kTwo;
      for (int64_t n = begin; n < end; n += kTwo) {
        const bool wide = n + kTile < end;
        const float* const b[2] = {panels.at(n), wide ? panels.at(n + kTile) : nullptr};
        float* to = sums[made % 2];
        if (rows > kTile)
          wide ? multiply_tiles<2, 2>(a, a_row, b, held, depth, ahead, to)
               : multiply_tiles<2, 1>(a, a_row, b, held, depth, ahead, to);
        else
          wide ? multiply_tiles<1, 2>(a, a_row, b, held, depth, ahead, to)
               : multiply_tiles<1, 1>(a, a_row, b, held, depth, ahead, to);
        if (made) store();  // the sums before, while these are under way
        made++, last_row = row, last_n = n;
      }
    }
  }
  store();
}

void product_by_tiles(const Gemm& all) {
  configure_tiles();
  over_blocks<2, true>(
      all, [&](const Block& g, int64_t columns, const Source& s, float* c) { tile_block(all, g, columns, s, c); });
}

}  // namespace
