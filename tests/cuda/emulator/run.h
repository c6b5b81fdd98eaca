// One call of a kernel of csrc/cuda in the emulator, as csrc/cuda/kernels.cu launches it on a device.
#pragma once
#include "cuda/bottleneck.h"
#include "cuda/ghost_module.h"
#include "cuda/launch.h"

namespace ghost::cuda {

/// `order` 0 forward, 1 backward, above that the seed of a random one.
template <class Kernel>
const char* in_order(int order, int64_t blocks, int threads, int shared, const Kernel& kernel) {
  const auto kind = order == 0 ? emulated::kForward : order == 1 ? emulated::kBackward : emulated::kRandom;
  return emulated::run(blocks, threads, shared, kind, static_cast<uint32_t>(order), kernel);
}

template <class T>
const char* run(const Call& c, int order) {
  const Block& b = c.block;
  const Plan& p = c.plan;
  Arguments<T> a{static_cast<const T*>(c.x),
                 static_cast<const T*>(c.matrices),
                 c.vectors,
                 static_cast<T*>(c.out),
                 c.sums,
                 static_cast<const T*>(c.residual),
                 static_cast<const T*>(c.scale),
                 c.vectors_of_x,
                 Phase::whole};
  for (int i = 0; i < p.launches; i++) {
    if (p.launches == 2) a.phase = i ? Phase::project : Phase::squeeze;
    const char* why = in_order(order, c.images * p.tiles(), p.threads, p.shared, [&](unsigned char* shared) {
      b.primary ? bottleneck<T>(b, p, a, shared) : ghost_module<T>(b, p, a, shared);
    });
    if (why) return why;
  }
  if (!c.squeeze) return nullptr;
  return in_order(order, (c.images * b.kept2 + 255) / 256, 256, 0, [&](unsigned char*) {
    means<T>(static_cast<T*>(c.squeeze), c.sums, c.images, p.tiles(), b.kept2, int64_t{b.height} * b.width);
  });
}

template <class T>
const char* run(const Gather& g, int order) {
  return in_order(order, (g.all + 255) / 256, 256, 0, [&](unsigned char*) {
    gather(static_cast<T*>(g.matrices), g.vectors, g.packed, g.index, g.count, g.all);
  });
}

}  // namespace ghost::cuda
