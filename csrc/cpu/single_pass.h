// The single pass: rows of y1 are made, kept while the cheap operation needs them, and both halves are written
// straight into the output, with residual and squeeze in passing.
//
// A program of one Ghost step computes the same to the bit, and is as fast on maps in channels_last. It is not used
// here: it converts whole maps that are in another layout (16 to 16 channels at 112 x 112, NCHW: 113 us instead of 91),
// and it takes no excitation, residual or y1 from a caller.
#pragma once
#include "halves.h"

namespace ghost {

struct SinglePass {
  Map x;  // the input, or the primary convolution's result where `primary` is null
  const Map* residual = nullptr;
  Map out;
  int64_t m = 0;                         // primary channels
  const float* primary = nullptr;        // [m][x.c]
  const float* primary_scale = nullptr;  // [m], of a folded BatchNorm: of the weight, or of x without one; or null
  const float* bias = nullptr;           // padded; added to x where there is no weight
  const float* input_scale = nullptr;    // [n][x.c]
  Act act = kNone, cheap_act = kNone;
  const float *slope = nullptr, *cheap_slope = nullptr;
  Cheap cheap;
  float* squeeze = nullptr;  // [n][out.c]
};

void run_single_pass(const SinglePass& pass);

}  // namespace ghost
