// From pointers to launches: what kernels.cu defines once for each dtype, for operators.cpp.
#pragma once
#include "strip.h"

namespace ghost::cuda {

/// A launch on images that are on the device; every pointer is one of the device. The pointers are those of `Arguments`
/// (work.h).
struct Call {
  Launch launch;
  const void* inputs[2];
  void *out, *between;
  const void *residual, *scale, *matrices;
  const float* vectors;
  float* sums;
  const float* known;
  int64_t images;
  bool is_planar;  // of an image that is read by windows: whether its channels are one after the other
  void* stream;
  int32_t most_shared;  // bytes that a thread block may have on this device
  bool overlaps;        // whether the device begins a kernel before the one before has ended
};

/// What each stage that touches tensors may read or write at a time, by their places and channels.
inline void set_units(Call& call, int element) {
  Window& window = call.launch.window;
  window.channel = call.is_planar ? window.height * window.width : 1;
  window.column = call.is_planar ? 1 : window.channels, window.row = window.width * window.column;
  const auto divides = [](const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  for (int i = 0; i < call.launch.stages; i++) {
    Stage& g = call.launch.stage[i];
    const auto fits = [&](int bytes, const void* tensor, int channel, int pixel) {
      return bytes >= element && divides(tensor, bytes) && channel * element % bytes == 0 &&
             pixel * element % bytes == 0 && g.lanes * element % bytes == 0;
    };
    const auto set = [&](int bytes, int side_by_side = 0) {
      const int vectors = g.lanes / (bytes / element);
      g.unit = side_by_side ? side_by_side : bytes, g.items = divisor(vectors);
      g.pieces = divisor(pieces_of(call.launch, call.launch.map[g.out], vectors));
    };
    if (g.kind == Kind::load && window.size && g.tensor == 0) {
      const int vectors = cdiv(g.channels, 16 / element);
      g.items = divisor(vectors), g.count = most(call.launch.threads / 32 / vectors, 1);
    } else if (g.kind == Kind::load) {
      for (int bytes : {element, 8, 16})
        if (fits(bytes, call.inputs[g.tensor], g.channel, g.channels)) set(bytes);
    } else if (g.kind == Kind::scale) {
      const void* from = g.in < 0 ? call.scale : nullptr;
      set(fits(16, from, 0, g.in < 0 ? g.channels : 0) ? 16 : element);
    } else if (g.kind == Kind::store || g.kind == Kind::join) {
      // Bytes that are side by side in shared memory: all, or the primary and the cheap channels of a Ghost module.
      const bool whole = g.primary == g.lanes || (g.primary == g.group && g.multiplier.value == 1);
      const auto divides_lanes = [&](int bytes) {
        return g.in_lane * element % bytes == 0 && (g.primary == g.lanes || g.primary * element % bytes == 0);
      };
      const int sides = whole && divides_lanes(16) ? 16 : divides_lanes(8) && g.multiplier.value == 1 ? 8 : 0;
      const void* to = g.kind == Kind::join ? nullptr : g.between ? call.between : call.out;
      const bool all = sides && fits(16, to, g.channel, g.channels) && fits(16, to, g.lane_step, g.channels) &&
                       (g.tensor != kResidual || divides(call.residual, 16));
      all ? set(16, sides) : set(element);
    }
  }
}

struct Gather {
  void* matrices;
  float* vectors;
  const float* packed;
  const int32_t* index;
  int64_t count, all;
  void* stream;
};

/// Means of a Ghost module's output, images x channels, from the sums of an image's parts.
struct Means {
  void* out;
  const float* sums;
  int64_t images;
  int32_t parts, channels, primary, multiplier;
  float inverse_pixels;
  void* stream;
};

/// The kernels of a dtype. Each returns null or why it could not be launched; `refuse` says, without a launch, why none
/// could be on the current device.
struct Kernels {
  const char* (*strip)(const Call&), *(*means)(const Means&), *(*gather)(const Gather&), *(*refuse)();
};
extern const Kernels kernels_float32, kernels_float16, kernels_bfloat16;

/// Processors and shared memory of a device, and the first number of its compute capability; null, or what went wrong.
const char* device_info(int index, int32_t& processors, int32_t& shared, int32_t& generation);

}  // namespace ghost::cuda
