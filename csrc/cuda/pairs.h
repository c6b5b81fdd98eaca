// Two neighbouring lanes at once: how they are read, written, added and multiplied.
#pragma once
#include <type_traits>

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

/// Four numbers in half precision.
struct alignas(8) FourHalves {
  uint32_t bits[2];
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

/// 16 bytes of lanes, or one element where those are not side by side; in half precision two elements are a word.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  static constexpr bool kWords = sizeof(T) == 2 && N % 2 == 0;
  std::conditional_t<kWords, uint32_t, T> values[kWords ? N / 2 : N];
};
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T, int N>
GHOST_DEVICE Vector<T, N> add(Vector<T, N> a, const Vector<T, N>& b) {
#pragma unroll
  for (size_t i = 0; i < sizeof a / sizeof a.values[0]; i++) {
    if constexpr (Vector<T, N>::kWords)
      a.values[i] = add_words(T{}, a.values[i], b.values[i]);
    else
      a.values[i] = narrow<T>(widen(a.values[i]) + widen(b.values[i]));
  }
  return a;
}
template <class T, int N>
GHOST_DEVICE Vector<T, N> multiply(Vector<T, N> a, const Vector<T, N>& b) {
#pragma unroll
  for (size_t i = 0; i < sizeof a / sizeof a.values[0]; i++) {
    if constexpr (Vector<T, N>::kWords)
      a.values[i] = multiply_words(T{}, a.values[i], b.values[i]);
    else
      a.values[i] = narrow<T>(widen(a.values[i]) * widen(b.values[i]));
  }
  return a;
}

/// Sums of the warp's products in their bounds, two of each four neighbouring ones to a word.
template <class T, int N>
GHOST_DEVICE void bound(uint32_t (&words)[N][2], const float (&sums)[N][4], float low, float high) {
  const auto all = [&](const auto& each) {
#pragma unroll
    for (int i = 0; i < N; i++) words[i][0] = each(sums[i][0], sums[i][1]), words[i][1] = each(sums[i][2], sums[i][3]);
  };
  if (high < kNoBound)
    all(Bounds<T>(low, high));
  else if (low == 0.f)
    all([](float first, float second) { return relu_pair<T>(first, second); });
  else
    all([](float first, float second) { return plain_pair<T>(first, second); });
}

/// n / d by what the host has prepared.
GHOST_DEVICE int divide(int n, const Divisor& d) {
  return d.magic ? static_cast<int>(multiply_high(static_cast<uint32_t>(n), d.magic)) : n;
}

}  // namespace ghost::cuda
