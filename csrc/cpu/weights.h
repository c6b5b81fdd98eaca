// How the weights of products (dense convolutions, 1x1 convolutions, linear layers) are packed, and what multiplies by
// them. A program's list names its format by the number that it calls the precision.
#pragma once
#include "abi.h"
#include "kernels/kernels.h"

namespace ghost {

struct WeightFormat {
  int64_t precision;
  const char* name;
  abi::DType dtype;  // of the packed tensor
  int64_t columns;   // of A, that each row of a panel is multiplied by
  bool scales_rows;  // its product multiplies A by an excitation; else a copy of the weights is multiplied by it
  void (*Kernels::*gemm)(const Gemm&);
  // n x k weights, each row times its scale (null: 1), into panels
  void (*pack)(const float* weight, int64_t n, int64_t k, const float* scale, float* out);

  /// Rows of a panel for k columns of A.
  int64_t depth(int64_t k) const { return (k + columns - 1) / columns; }
  int64_t floats(int64_t n, int64_t k) const { return panel_floats(n, depth(k)); }
};

/// Raises nothing; null where no format has this number.
const WeightFormat* weight_format(int64_t precision);

}  // namespace ghost
