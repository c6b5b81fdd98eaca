// Two neighbouring lanes at once: how they are read, written, added and multiplied.
#pragma once
#include "device.h"
#include "strip.h"

namespace ghost::cuda {

GHOST_DEVICE int lane() { return thread() & 31; }
GHOST_DEVICE int warp() { return thread() >> 5; }
GHOST_DEVICE int warps() { return threads() >> 5; }

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <class T>
GHOST_DEVICE void load_pair(float (&to)[2], const unsigned char* from) {
  const auto pair = *reinterpret_cast<const Pair<T>*>(from);
  to[0] = widen(pair.first), to[1] = widen(pair.second);
}
template <class T>
GHOST_DEVICE void store_pair(unsigned char* to, float first, float second) {
  if constexpr (sizeof(T) == 2)
    *reinterpret_cast<uint32_t*>(to) = pack<T>(first, second);
  else
    *reinterpret_cast<Pair<float>*>(to) = {first, second};
}

/// A pair as `Bounds` makes it.
template <class T, class V>
GHOST_DEVICE void put(Pair<T>* to, V value) {
  static_assert(sizeof(V) == sizeof(Pair<T>));
  *reinterpret_cast<V*>(to) = value;
}

/// 16 bytes of lanes, or one element where those are not side by side.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T values[N];
};
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T, int N>
GHOST_DEVICE Vector<T, N> add(Vector<T, N> a, const Vector<T, N>& b) {
#pragma unroll
  for (int i = 0; i < N; i++) a.values[i] = narrow<T>(widen(a.values[i]) + widen(b.values[i]));
  return a;
}
template <class T, int N>
GHOST_DEVICE Vector<T, N> multiply(Vector<T, N> a, const Vector<T, N>& b) {
#pragma unroll
  for (int i = 0; i < N; i++) a.values[i] = narrow<T>(widen(a.values[i]) * widen(b.values[i]));
  return a;
}

/// n / d by what the host has prepared.
GHOST_DEVICE int divide(int n, const Divisor& d) {
  return d.magic ? static_cast<int>(multiply_high(static_cast<uint32_t>(n), d.magic)) : n;
}

}  // namespace ghost::cuda
