// Rows of a caller's map to NHWC float32 and back: NCHW by tiles turned in registers, bfloat16 by widening, any
// strides slowly.
#include "bfloat16.h"
#include "kernels.h"
#include "simd.h"

namespace {

using ghost::Strided;

struct Float {
  using T = float;
  GHOST_INLINE float read(const float* p) { return *p; }
  GHOST_INLINE void write(float* p, float f) { *p = f; }
};

struct Bf16 {
  using T = uint16_t;
  GHOST_INLINE float read(const uint16_t* p) { return widen(*p); }
  GHOST_INLINE void write(uint16_t* p, float f) { *p = narrow(f); }
};

constexpr int64_t kTile = 16;  // channels x pixels that stay in cache while they are turned

// turn(L, c, x): L channels of L pixels; move(c, x): one element. All of channels x width, a tile at a time.
template <class Turn, class Move>
GHOST_INLINE void over_tiles(int64_t channels, int64_t width, bool turns, const Turn& turn, const Move& move) {
  for (int64_t c0 = 0; c0 < channels; c0 += kTile)
    for (int64_t x0 = 0; x0 < width; x0 += kTile) {
      const int64_t c1 = c0 + kTile < channels ? c0 + kTile : channels, x1 = x0 + kTile < width ? x0 + kTile : width;
      if (turns && kLanes == kTile && c1 - c0 == kTile && x1 - x0 == kTile) {
        turn(Whole<kLanes>{}, c0, x0);
        continue;
      }
      int64_t c = c0;
      for (; turns && c + 4 <= c1; c += 4) {
        int64_t x = x0;
        for (; x + 4 <= x1; x += 4) turn(Whole<4>{}, c, x);
        for (; x < x1; x++)
          for (int64_t i = 0; i < 4; i++) move(c + i, x);
      }
      for (; c < c1; c++)
        for (int64_t x = x0; x < x1; x++) move(c, x);
    }
}

// Rows that follow each other on both sides are one long row.
GHOST_INLINE void join_rows(const Strided& m, int64_t other_row, int64_t other_pixel, int64_t& rows, int64_t& width) {
  if (m.row != width * m.pixel || other_row != width * other_pixel) return;
  width *= rows;
  rows = 1;
}

template <class E>
void gather(const Strided& m, int64_t rows, int64_t width, int64_t channels, float* to, int64_t to_row,
            int64_t to_pixel) {
  join_rows(m, to_row, to_pixel, rows, width);
  constexpr bool kFloats = sizeof(typename E::T) == sizeof(float);
  for (int64_t r = 0; r < rows; r++) {
    const typename E::T* from = (const typename E::T*)m.data + r * m.row;
    float* row = to + r * to_row;
    if (m.channel == 1 && m.pixel == channels && to_pixel == channels) {
      for (int64_t i = 0; i < width * channels; i++) row[i] = E::read(from + i);
      continue;
    }
    if (m.channel == 1) {
      for (int64_t x = 0; x < width; x++)
        for (int64_t c = 0; c < channels; c++) row[x * to_pixel + c] = E::read(from + x * m.pixel + c);
      continue;
    }
    if (channels == 3 && m.pixel == 1 && to_pixel == 3) {  // an image's
      const typename E::T *red = from, *green = from + m.channel, *blue = from + 2 * m.channel;
      for (int64_t x = 0; x < width; x++) {
        row[3 * x] = E::read(red + x);
        row[3 * x + 1] = E::read(green + x);
        row[3 * x + 2] = E::read(blue + x);
      }
      continue;
    }
    over_tiles(
        channels, width, kFloats && m.pixel == 1,
        [&](auto whole, int64_t c, int64_t x) {
          constexpr int L = decltype(whole){};
          transpose<L>((const float*)from + c * m.channel + x, m.channel, row + x * to_pixel + c, to_pixel,
                       Vec<L>::set(1.f));
        },
        [&](int64_t c, int64_t x) { row[x * to_pixel + c] = E::read(from + c * m.channel + x * m.pixel); });
  }
}

template <class E>
void scatter(const float* from, int64_t from_row, int64_t from_pixel, int64_t rows, int64_t width, int64_t channels,
             const Strided& m) {
  join_rows(m, from_row, from_pixel, rows, width);
  constexpr bool kFloats = sizeof(typename E::T) == sizeof(float);
  for (int64_t r = 0; r < rows; r++) {
    typename E::T* to = (typename E::T*)m.data + r * m.row;
    const float* row = from + r * from_row;
    if (m.channel == 1) {
      for (int64_t x = 0; x < width; x++)
        for (int64_t c = 0; c < channels; c++) E::write(to + x * m.pixel + c, row[x * from_pixel + c]);
      continue;
    }
    over_tiles(
        channels, width, kFloats && m.pixel == 1,
        [&](auto whole, int64_t c, int64_t x) {
          constexpr int L = decltype(whole){};
          transpose<L>(row + x * from_pixel + c, from_pixel, (float*)to + c * m.channel + x, m.channel,
                       Vec<L>::set(1.f));
        },
        [&](int64_t c, int64_t x) { E::write(to + c * m.channel + x * m.pixel, row[x * from_pixel + c]); });
  }
}

}  // namespace

extern "C" void GHOST_SYMBOL(gather)(const Strided& from, int64_t rows, int64_t width, int64_t channels, float* to,
                                     int64_t to_row, int64_t to_pixel) {
  (from.bf16 ? gather<Bf16> : gather<Float>)(from, rows, width, channels, to, to_row, to_pixel);
}

extern "C" void GHOST_SYMBOL(scatter)(const float* from, int64_t from_row, int64_t from_pixel, int64_t rows,
                                      int64_t width, int64_t channels, const Strided& to) {
  (to.bf16 ? scatter<Bf16> : scatter<Float>)(from, from_row, from_pixel, rows, width, channels, to);
}
