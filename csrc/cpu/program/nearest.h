// Nearest upsampling: which pixel of a smaller or larger map goes where, as PyTorch has it.
#pragma once
#include <algorithm>
#include <cmath>

#include "step.h"

namespace ghost {

/// Rows (or columns) of a map of `from`, for one of `to`.
class Nearest {
 public:
  /// With a factor it decides, not the sizes (0: there is none).
  Nearest(int64_t from, int64_t to, double factor = 0)
      : from_(from),
        to_(to),
        scale_(factor > 0 ? static_cast<float>(1.0 / factor) : static_cast<float>(from) / static_cast<float>(to)) {}

  int64_t at(int64_t y) const {
    if (to_ == from_) return y;
    if (to_ == 2 * from_) return y / 2;
    return std::min(static_cast<int64_t>(std::floor(static_cast<float>(y) * scale_)), from_ - 1);
  }

  /// Calls f(from, first, count) for places that take the same one; once for all, where sizes are equal.
  template <class F>
  void each_run(const F& f) const {
    if (to_ == from_) return f(0, 0, to_);
    for (int64_t begin = 0, end; begin < to_; begin = end) {
      const int64_t one = at(begin);
      for (end = begin + 1; end < to_ && at(end) == one;) end++;
      f(one, begin, end - begin);
    }
  }

 private:
  int64_t from_, to_;
  float scale_;
};

/// Rows of the smaller map that rows [first, end) of the larger are made of.
inline RowRange nearest_rows(int64_t from, int64_t to, int64_t first, int64_t end, double factor = 0) {
  const Nearest rows(from, to, factor);
  return {rows.at(std::max<int64_t>(0, first)), end <= first ? 0 : rows.at(std::min(end, to) - 1) + 1};
}

}  // namespace ghost
