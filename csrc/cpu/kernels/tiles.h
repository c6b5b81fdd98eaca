// AMX: tiles of 16 rows of 64 bytes, and what goes into them and comes out. GHOST_EMULATED_TILES does the same in plain
// C++, for tests on machines that have none. Internal linkage, as simd.h says.
//
// Tiles 0 to 3 are sums, 16 x 16 floats; 4 and 5 are rows of A, 16 pairs of bfloat16 each; 6 and 7 are 16 rows of B, a
// pair in each of 16 columns.
#pragma once
#include "bfloat16.h"
#include "simd.h"

namespace {

constexpr int kTile = 16;           // rows, pairs, columns
constexpr int64_t kTileBytes = 64;  // of a row

using Lanes = Vec<kTile>;

GHOST_INLINE uint32_t lanes_between(int64_t first, int64_t end) {
  return (uint32_t)(((uint64_t)1 << end) - ((uint64_t)1 << first));
}

#if !defined(GHOST_EMULATED_TILES)

GHOST_INLINE Lanes::T load_lanes(const float* p, uint32_t lanes) {  // the others read as zero
  return (Lanes::T)_mm512_maskz_loadu_ps((__mmask16)lanes, p);
}
GHOST_INLINE void store_lanes(float* p, uint32_t lanes, Lanes::T v) {
  _mm512_mask_storeu_ps(p, (__mmask16)lanes, (__m512)v);
}
// Both rounded to bfloat16, one after the other.
GHOST_INLINE void store_rounded(float* p, uint32_t lanes, Lanes::T first, Lanes::T second) {
  _mm512_mask_storeu_epi16(p, lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}

// They belong to the thread, as registers do, and another library may have left them otherwise.
void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } wanted, found;
  for (int i = 0; i < 8; i++) wanted.row_bytes[i] = kTileBytes, wanted.rows[i] = kTile;
  _tile_storeconfig(&found);
  if (std::memcmp(&found, &wanted, sizeof found)) _tile_loadconfig(&wanted);
}
GHOST_INLINE void release_tiles() { _tile_release(); }

// Not the intrinsics, which want literal numbers of tiles, and do not say that they read memory.
template <int kNumber>
GHOST_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kNumber));
}
template <int kNumber>
GHOST_INLINE void load_tile(const float* p, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(row_bytes), "i"(kNumber) : "memory");
}
template <int kNumber>
GHOST_INLINE void store_tile(float* p, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(row_bytes), "i"(kNumber) : "memory");
}
template <int kSums, int kA, int kB>
GHOST_INLINE void add_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

#else

GHOST_INLINE Lanes::T load_lanes(const float* p, uint32_t lanes) {
  Lanes::T v{};
  for (int i = 0; i < kTile; i++)
    if (lanes >> i & 1) v[i] = p[i];
  return v;
}
GHOST_INLINE void store_lanes(float* p, uint32_t lanes, Lanes::T v) {
  for (int i = 0; i < kTile; i++)
    if (lanes >> i & 1) p[i] = v[i];
}
GHOST_INLINE void store_rounded(float* p, uint32_t lanes, Lanes::T first, Lanes::T second) {
  for (int i = 0; i < 2 * kTile; i++) {
    const uint16_t rounded = narrow(i < kTile ? first[i] : second[i - kTile]);
    if (lanes >> i & 1) std::memcpy((char*)p + 2 * i, &rounded, 2);
  }
}

char emulated_tiles[8][kTile][kTileBytes];
bool configured = false;

void configure_tiles() { configured = true; }
GHOST_INLINE void release_tiles() { configured = false; }

template <int kNumber>
GHOST_INLINE void zero_tile() {
  if (!configured) __builtin_trap();
  std::memset(emulated_tiles[kNumber], 0, sizeof emulated_tiles[kNumber]);
}
template <int kNumber>
GHOST_INLINE void load_tile(const float* p, int64_t row_bytes) {
  if (!configured) __builtin_trap();
  for (int i = 0; i < kTile; i++) std::memcpy(emulated_tiles[kNumber][i], (const char*)p + i * row_bytes, kTileBytes);
}
template <int kNumber>
GHOST_INLINE void store_tile(float* p, int64_t row_bytes) {
  for (int i = 0; i < kTile; i++) std::memcpy((char*)p + i * row_bytes, emulated_tiles[kNumber][i], kTileBytes);
}
template <int kSums, int kA, int kB>
GHOST_INLINE void add_product() {
  const auto half = [](int tile, int row, int pair, int which) {
    uint16_t bits;
    std::memcpy(&bits, &emulated_tiles[tile][row][4 * pair + 2 * which], 2);
    return widen(bits);
  };
  for (int i = 0; i < kTile; i++)
    for (int j = 0; j < kTile; j++) {
      float sum;
      std::memcpy(&sum, &emulated_tiles[kSums][i][4 * j], 4);
      for (int k = 0; k < kTile; k++)
        for (int which = 0; which < 2; which++) sum += half(kA, i, k, which) * half(kB, k, j, which);
      std::memcpy(&emulated_tiles[kSums][i][4 * j], &sum, 4);
    }
}

#endif

}  // namespace
