// The rows of A in a block of a product, and their addresses under a register tile.
//
// Included by gemm.h only.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::Run;

// A block of the product: some rows, some of k, all columns.
struct Block {
  const float* a;  // [rows x columns of the runs]; strides as in Gemm
  int64_t a_row, a_col, rows;
  const Run* runs;  // [run_count], from `a` on
  int64_t run_count;
  bool accumulate, relu;
  ghost::Ahead* ahead;
  // Where rows are in groups: how many rows of A come before those of the block. Else `a` is the block's first row.
  int64_t first = 0, width = 0, group = 0;
  const ghost::Finish* finish = nullptr;  // null, too, where more of the sum is to come
  int64_t c_first = 0;                    // C's row that the block's first one is
  // C's column that a tile begins at, and how many are finished from there on.
  int64_t c_column = 0, finish_columns = 0;
  int64_t c_group = 0;  // as in Gemm; the block has all rows then
  // The panels under the next tile of columns, which are fetched into the second-level cache under this one; or null.
  const float* next[2] = {nullptr, nullptr};
};

GHOST_INLINE const float* row_of(const Block& g, int64_t row) {
  if (!g.width) return g.a + row * g.a_row;
  row += g.first;
  return g.a + row / g.width * g.group + row % g.width * g.a_row;
}
// How many rows from this one on are at one distance.
GHOST_INLINE int64_t rows_in_line(const Block& g, int64_t row) {
  return g.width ? g.width - (row + g.first) % g.width : g.rows - row;
}
// Where a row is in C, from the block's first one on.
GHOST_INLINE int64_t place_in_c(const Block& g, int64_t row, int64_t c_row) {
  return g.c_group ? row / g.width * g.c_group + row % g.width * c_row : row * c_row;
}
GHOST_INLINE void skip_rows(Block& g, int64_t rows) {
  if (g.width)
    g.first += rows;
  else
    g.a += rows * g.a_row;
  g.rows -= rows, g.c_first += rows;
}

// Addresses of rows of A, which are at one distance: seven each from one pointer, by the ways that addresses can add
// up. What is kept for them is opaque to the compiler, which would keep one offset a row, and those on the stack.
constexpr int kRowsOfBase = 7;

template <int MR>
struct RowPointers {
  static constexpr int kBases = (MR + kRowsOfBase - 1) / kRowsOfBase;
  const char* base[kBases];          // every kRowsOfBase-th row
  int64_t once, thrice, five_times;  // the distance, bytes

  RowPointers(const Block& g, int64_t)
      : once(g.a_row * (int64_t)sizeof(float)), thrice(3 * once), five_times(5 * once) {}
  GHOST_INLINE void start(RowPointers& r, const float* a) {
    for (int j = 0; j < kBases; j++) r.base[j] = (const char*)a + j * kRowsOfBase * r.once;
  }
  GHOST_INLINE void hide(RowPointers& r) {
    asm("" : "+r"(r.once), "+r"(r.thrice), "+r"(r.five_times));
#pragma GCC unroll 4
    for (int j = 0; j < kBases; j++) asm("" : "+r"(r.base[j]));
  }
  GHOST_INLINE const char* at(const RowPointers& r, int i) {
    const int64_t far[] = {0, r.once, 2 * r.once, r.thrice, 4 * r.once, r.five_times, 2 * r.thrice};
    return r.base[i / kRowsOfBase] + far[i % kRowsOfBase];
  }
  GHOST_INLINE void step(RowPointers& r, int64_t bytes) {
#pragma GCC unroll 4
    for (int j = 0; j < kBases; j++) r.base[j] += bytes;
  }
};

// The same of rows at any distances from the first. Those of a few rows are in registers; of more they stay in memory.
template <int MR>
struct RowTable {
  static constexpr bool kInRegisters = MR <= 6;
  const char* base;
  int64_t far[MR];  // bytes

  RowTable(const Block& g, int64_t row) {
    int64_t at = 0, line = rows_in_line(g, row);  // a division a row would take as long as a tenth of a tile
    for (int i = 0; i < MR; i++) {
      far[i] = at * (int64_t)sizeof(float);
      at += g.a_row;
      if (--line == 0) at += g.group - g.width * g.a_row, line = g.width;
    }
  }
  GHOST_INLINE void start(RowTable& r, const float* a) { r.base = (const char*)a; }
  GHOST_INLINE void hide(RowTable& r) {
    if (kInRegisters) {
#pragma GCC unroll 6
      for (int i = 1; i < MR; i++) asm("" : "+r"(r.far[i]));
      asm("" : "+r"(r.base));
    } else {
      asm("" : "+r"(r.base), "+m"(r.far));
    }
  }
  GHOST_INLINE const char* at(const RowTable& r, int i) { return i == 0 ? r.base : r.base + r.far[i]; }
  GHOST_INLINE void step(RowTable& r, int64_t bytes) { r.base += bytes; }
};

}  // namespace
