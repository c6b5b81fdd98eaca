// Maps of which only the rows in use are kept.
#pragma once
#include "scratch.h"

namespace ghost {

/// The rows that are kept: all of a map, or as many as are in use at once, each in the place of the one `rows` before.
struct Ring {
  int64_t rows = 0, shift = 0;

  int64_t place(int64_t y) const { return (y + shift) % rows; }
  /// Rows from y on that follow each other in memory.
  int64_t room(int64_t y) const { return rows - place(y); }
};

/// Memory for rows that are made in order, a few at a time, and wanted again by the rows around them.
///
/// `span` rows are wanted at once beside the step that is being made. Rows come in steps of `step` from the first on,
/// and a step never wraps, so that it is dense. Rows outside the map read as zeros.
class RowRing {
 public:
  RowRing() = default;
  RowRing(int64_t first, int64_t step, int64_t span, int64_t height, int64_t width, int64_t pixel, Scratch& scratch)
      : ring_{(span + step - 1) / step * step + step, -first}, height_(height), row_(width * pixel) {
    data_ = scratch.floats(ring_.rows * row_);
    zeros_ = scratch.zeros(row_);
  }
  float* row(int64_t y) const { return data_ + ring_.place(y) * row_; }
  /// Pointers to rows y - halo to y + count + halo.
  void window(int64_t y, int64_t count, int64_t halo, const float** rows) const {
    for (int64_t i = -halo; i < count + halo; i++) *rows++ = y + i < 0 || y + i >= height_ ? zeros_ : row(y + i);
  }

 private:
  Ring ring_{1, 0};
  int64_t height_ = 0, row_ = 0;
  float *data_ = nullptr, *zeros_ = nullptr;
};

}  // namespace ghost
