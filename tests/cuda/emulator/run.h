// One call of a kernel of csrc/cuda in the emulator, as csrc/cuda/kernels.cu launches it on a device.
#pragma once
#include "cuda/launch.h"
#include "cuda/strip_kernel.h"

namespace ghost::cuda {

/// `order` 0 forward, 1 backward, above that the seed of a random one.
template <class Kernel>
const char* in_order(int order, int64_t blocks, int64_t rows, int64_t layers, int threads, int shared, const Kernel& kernel) {
  const auto kind = order == 0 ? emulated::kForward : order == 1 ? emulated::kBackward : emulated::kRandom;
  return emulated::run(blocks, rows, layers, threads, shared, kind, static_cast<uint32_t>(order), kernel);
}

template <class T>
const char* run(const Call& c, int order) {
  const Launch& l = c.launch;
  const Arguments<T> a = arguments_of<T>(c);
  return in_order(order, l.places(), l.grid, l.chunks, l.threads, l.shared, [&](unsigned char* shared) { strip(l, a, shared); });
}

template <class T>
const char* run(const Means& m, int order) {
  return in_order(order, (m.images * m.channels + 255) / 256, 1, 1, 256, 0, [&](unsigned char*) {
    means(static_cast<T*>(m.out), m.sums, m.images, m.parts, m.channels, m.primary, m.multiplier, m.inverse_pixels);
  });
}

template <class T>
const char* run(const Gather& g, int order) {
  return in_order(order, (g.all + 255) / 256, 1, 1, 256, 0, [&](unsigned char*) {
    gather(static_cast<T*>(g.matrices), g.vectors, g.packed, g.index, g.count, g.all);
  });
}

}  // namespace ghost::cuda
