// The rows that nearest upsampling reads.
#pragma once
#include "cpu/nearest.h"
#include "step.h"

namespace ghost {

/// Rows of the smaller map that rows [first, end) of the larger are made of.
inline RowRange nearest_rows(int64_t from, int64_t to, int64_t first, int64_t end, double factor = 0) {
  const Nearest rows(from, to, factor);
  return {rows.at(std::max<int64_t>(0, first)), end <= first ? 0 : rows.at(std::min(end, to) - 1) + 1};
}

}  // namespace ghost
