// From pointers to launches: what kernels.cu defines once for each dtype, for operators.cpp.
#pragma once
#include "shape.h"

namespace ghost::cuda {

/// A block on images that are on the device; every pointer is one of the device.
struct Call {
  Block block;
  Plan plan;
  int64_t images;
  const void *x, *matrices;
  const float* vectors;
  void* out;
  float* sums;    // images x tiles x lanes (a module alone: x its channels), or null
  void* squeeze;  // a module alone: images x channels, or null
  const void *residual, *scale;
  bool vectors_of_x;  // x may be read 16 bytes at a time
  void* stream;
  int32_t most_shared;  // bytes that a thread block may have on this device
};

struct Gather {
  void* matrices;
  float* vectors;
  const float* packed;
  const int32_t* index;
  int64_t count, all;
  void* stream;
};

/// The kernels of a dtype. Each returns null or why it could not be launched; `refuse` says, without a launch, why none
/// could be on the current device.
struct Kernels {
  const char* (*bottleneck)(const Call&), *(*module)(const Call&), *(*gather)(const Gather&), *(*refuse)();
};
extern const Kernels kernels_float32, kernels_float16, kernels_bfloat16;

/// Processors and shared memory of a device; null, or what went wrong.
const char* device_info(int index, int32_t& processors, int32_t& shared);

}  // namespace ghost::cuda
