// Blocks of channels in memory, and sums of them that lose nothing to their length.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace {

template <class V, class Lanes>
GHOST_INLINE typename V::T load_some(const float* p, Lanes lanes) {
  return lanes == V::lanes ? V::load(p) : V::load(p, lanes);
}

template <class V, class Lanes>
GHOST_INLINE void store_some(float* p, typename V::T v, Lanes lanes) {
  if (lanes == V::lanes)
    V::store(p, v);
  else
    V::store(p, v, lanes);
}

// A compensated sum (Kahan) of partial ones.
template <class V>
struct Sum {
  typename V::T sum = V::zero(), low = V::zero();
  GHOST_INLINE void add(Sum& s, typename V::T part) {
    const auto term = part - s.low, after = s.sum + term;
    s.low = (after - s.sum) - term;
    s.sum = after;
  }
};

// Adds to a caller's sum: the compensations are padded(channels) floats behind the sums.
template <class V, class Lanes>
GHOST_INLINE void add_to(float* sum, int64_t channels, int64_t c, const Sum<V>& part, Lanes lanes) {
  float *at = sum + c, *low = at + ghost::padded(channels);
  Sum<V> s{load_some<V>(at, lanes), load_some<V>(low, lanes)};
  Sum<V>::add(s, part.sum);
  Sum<V>::add(s, -part.low);
  store_some<V>(at, s.sum, lanes);
  store_some<V>(low, s.low, lanes);
}

}  // namespace
