// Maps and parameters of a call as the kernels want them: NHWC float32 rows, whatever the caller's layout and dtype.
#pragma once
#include <optional>

#include "abi_threads.h"
#include "isa.h"
#include "memory.h"
#include "scratch.h"

namespace ghost {

/// An N x C x H x W tensor, float32 or bfloat16, any strides.
struct Map {
  char* data = nullptr;
  bool bf16 = false;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t image = 0, channel = 0, row = 0, pixel = 0;  // strides in elements
  bool direct = false;                                 // rows can be read and written in place

  Map() = default;
  explicit Map(const abi::Tensor& t) {
    const int64_t *size = t.sizes(), *stride = t.strides();
    n = size[0], c = size[1], h = size[2], w = size[3];
    image = stride[0], channel = c == 1 ? 1 : stride[1], row = stride[2], pixel = stride[3];
    if (w == 1) pixel = h == 1 ? c : row;  // strides of a single row or pixel say nothing
    if (h == 1) row = w * pixel;
    data = const_cast<char*>(t.data<const char>());
    bf16 = t.dtype() == abi::DType::bfloat16;
    direct = !bf16 && channel == 1 && row == w * pixel;
  }

  char* at(int64_t image_index, int64_t y, int64_t first_channel = 0) const {
    return data + (image_index * image + y * row + first_channel * channel) * (bf16 ? 2 : 4);
  }
};

/// Some rows of one image: NHWC float32, rows dense.
struct Rows {
  float* data;
  int64_t pixel;
};

/// The rows after y + count, as many, for a product over those before to fetch on its way.
constexpr int64_t kRowsAhead = 64;  // as many bytes as the product reads itself
inline Ahead next_rows(const Map& m, int64_t image, int64_t y, int64_t count) {
  if (!m.direct) return {};
  return {m.at(image, y + count), m.at(image, std::min(m.h, y + 2 * count)), kRowsAhead};
}

/// Loads a word of every line of rows y to y + count, in order: a stream that the hardware foresees, where it does not
/// foresee a block of channels at a time, nor, as it was measured, follow prefetches. Where a pixel is one line the
/// kernels' own reads are such a stream, and rows that are converted are read in order anyway.
inline void fetch_rows(const Map& m, int64_t image, int64_t y, int64_t count) {
  constexpr int64_t kLine = 64;
  if (!m.direct || m.pixel * 4 <= kLine) return;
  const char *p = m.at(image, y), *end = p + (count * m.row - m.pixel + m.c) * 4;
  for (; p < end; p += kLine) asm volatile("" : : "r"(*reinterpret_cast<const int32_t*>(p)));
}

/// `channels` channels, from the first given, of rows y to y + count: in place where they can be, else converted into
/// scratch of rows_scratch(m, count) floats.
inline Rows rows_of(const Map& m, int64_t image, int64_t y, int64_t count, float* scratch, int64_t first,
                    int64_t channels) {
  char* from = m.at(image, y, first);
  if (m.direct) return {reinterpret_cast<float*>(from), m.pixel};
  const int64_t pixel = padded(channels);
  kernels().gather({from, m.bf16, m.channel, m.row, m.pixel}, count, m.w, channels, scratch, m.w * pixel, pixel);
  return {scratch, pixel};
}

/// The same, for kernels that read a block of channels at a time.
inline Rows read_rows(const Map& m, int64_t image, int64_t y, int64_t count, float* scratch, int64_t first,
                      int64_t channels) {
  fetch_rows(m, image, y, count);
  return rows_of(m, image, y, count, scratch, first, channels);
}

inline Rows read_rows(const Map& m, int64_t image, int64_t y, int64_t count, float* scratch) {
  return read_rows(m, image, y, count, scratch, 0, m.c);
}

/// Where `channels` channels of rows are to be written: the map itself, or scratch which `finish_rows` then converts.
inline Rows rows_to_write(const Map& m, int64_t image, int64_t y, float* scratch, int64_t first, int64_t channels) {
  return m.direct ? Rows{reinterpret_cast<float*>(m.at(image, y, first)), m.pixel} : Rows{scratch, padded(channels)};
}

inline Rows rows_to_write(const Map& m, int64_t image, int64_t y, float* scratch) {
  return rows_to_write(m, image, y, scratch, 0, m.c);
}

/// Converts `channels` channels, from the first given, into the map, unless they were written in place.
inline void finish_rows(const Map& m, int64_t image, int64_t y, int64_t count, const Rows& rows, int64_t first,
                        int64_t channels) {
  if (m.direct) return;
  kernels().scatter(rows.data, m.w * rows.pixel, rows.pixel, count, m.w, channels,
                    {m.at(image, y, first), m.bf16, m.channel, m.row, m.pixel});
}

inline void finish_rows(const Map& m, int64_t image, int64_t y, int64_t count, const Rows& rows) {
  finish_rows(m, image, y, count, rows, 0, m.c);
}

/// Scratch that rows of a map need: none where they are read in place.
inline int64_t rows_scratch(const Map& m, int64_t count) { return m.direct ? 0 : count * m.w * padded(m.c); }

/// The elements of a parameter in float32, dense in the order of its dimensions; in place where they are so.
inline const float* dense(const abi::Tensor& t, Scratch& scratch) {
  const bool bf16 = t.dtype() == abi::DType::bfloat16;
  if (!bf16 && t.is_contiguous()) return t.data<const float>();
  const int64_t dim = t.dim(), numel = t.numel(), *size = t.sizes(), *stride = t.strides();
  float* out = scratch.floats(numel);
  const char* data = t.data<const char>();
  if (t.is_contiguous()) {
    kernels().gather({const_cast<char*>(data), true, 1, numel, numel}, 1, 1, numel, out, numel, numel);
    return out;
  }
  for (int64_t i = 0; i < numel; i++) {
    int64_t left = i, offset = 0;
    for (int64_t d = dim - 1; d >= 0; d--) offset += left % size[d] * stride[d], left /= size[d];
    if (bf16) {
      uint32_t bits = uint32_t{reinterpret_cast<const uint16_t*>(data)[offset]} << 16;
      std::memcpy(out + i, &bits, 4);
    } else {
      out[i] = reinterpret_cast<const float*>(data)[offset];
    }
  }
  return out;
}

inline const float* dense(const std::optional<abi::Tensor>& t, Scratch& scratch) {
  return t ? dense(*t, scratch) : nullptr;
}

/// n floats of a parameter (or of `otherwise`), padded with zeros to a whole vector.
inline float* padded_copy(const float* p, int64_t n, Scratch& scratch, float otherwise = 0.f) {
  float* out = scratch.floats(padded(n));
  for (int64_t i = 0; i < padded(n); i++) out[i] = i >= n ? 0.f : p ? p[i] : otherwise;
  return out;
}

/// Writes float32 results into a new tensor of this dtype.
inline abi::Tensor result(const float* p, std::initializer_list<int64_t> sizes, abi::DType dtype) {
  abi::Tensor t = abi::empty(sizes, dtype);
  const int64_t n = t.numel();
  if (dtype == abi::DType::float32)
    std::copy(p, p + n, t.data<float>());
  else
    kernels().scatter(p, n, 1, 1, n, 1, {t.data<char>(), true, 1, n, 1});
  return t;
}

/// The layout of the maps that an operator makes from x, as `memory_format` in ghost_ops/backends/layout.py decides it.
inline abi::Layout layout_of(const abi::Tensor& x) {
  if (x.is_contiguous()) return abi::Layout::contiguous;
  if (x.is_contiguous(abi::Layout::channels_last)) return abi::Layout::channels_last;
  return x.stride(1) == 1 && x.size(1) > 1 ? abi::Layout::channels_last : abi::Layout::contiguous;
}

/// A new map in x's dtype and layout.
inline abi::Tensor new_map(std::initializer_list<int64_t> sizes, const abi::Tensor& x) {
  return new_tensor(sizes, x.dtype(), layout_of(x));
}

}  // namespace ghost
