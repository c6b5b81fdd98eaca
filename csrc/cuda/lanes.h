// Stages that go lane by lane: activations, excitations, sums over pixels, means.
#pragma once
#include "activation.h"
#include "diagonal.h"

namespace ghost::cuda {

/// An activation of what a stage before has rounded, in place.
template <class T>
GHOST_DEVICE void activate(const Work<T>& w, const Stage& g) {
  const Pixels<T> pixels(w, g.out, w.rows(w.map(g.out)), g.out);
  unsigned char* const map = w.at(pixels.m, g.out_lane);
  const float* const slopes = g.slopes < 0 ? nullptr : w.a.vectors + g.slopes + layer_of_blocks() * g.lane_step;
  const int count = pixels.count() * g.items.value;
#pragma unroll 1
  for (int i = thread(); i < count; i += threads()) {
    const int p = divide(i, g.items), l = 2 * (i - p * g.items.value);
    unsigned char* const place = map + pixels.at(p) + l * int{sizeof(T)};
    float v[2];
    load_pair<T>(v, place);
    for (int j = 0; j < 2; j++) v[j] = activation(v[j], g.act, slopes ? constant(slopes + l + j) : 0.f);
    store_pair<T>(place, v[0], v[1]);
  }
}

template <int N, class T>
GHOST_DEVICE void scale_vectors(const Work<T>& w, const Stage& g) {
  using V = Vector<T, N>;
  const Pixels<T> pixels(w, g.out, w.rows(w.map(g.out)), g.out);
  unsigned char* const map = w.at(pixels.m, g.out_lane);
  const Map& own = w.map(g.in < 0 ? g.out : g.in);
  const T* const factors = g.in < 0 ? w.a.scale + w.step.image * g.channels
                                    : reinterpret_cast<const T*>(w.at(own, 0) + pixel(own, 0, own.halo));
  const int items = g.items.value, between = pixels.m.pitch - items * int{sizeof(V)};
  unsigned char* row_of_map = nullptr;
  for_vectors(
      pixels, g, [&](int row) { row_of_map = map + pixels.at(row, 0); },
      [&](int i, int p) {
        V* const place = reinterpret_cast<V*>(row_of_map + (i * int{sizeof(V)} + p * between));
        *place = multiply(*place, reinterpret_cast<const V*>(factors)[i - p * items]);
      });
}

/// Lanes times an excitation, in place: the argument, or with `in` a pixel of shared memory.
template <class T>
GHOST_DEVICE void scale(const Work<T>& w, const Stage& g) {
  if (g.unit == 16) return scale_vectors<kVector<T>>(w, g);
  scale_vectors<1>(w, g);
}

/// Sums of pairs of lanes, over each `count`-th pixel; `partial`: all lanes of the first pixels, of the second ...
template <class T>
GHOST_DEVICE void sum_pairs(const Work<T>& w, const Stage& g, const Pixels<T>& pixels, float* partial, int count) {
  const int pairs = g.items.value;
#pragma unroll 1
  for (int i = thread(); i < pairs * count; i += threads()) {
    const int part = divide(i, g.items), l = 2 * (i - part * pairs);
    float own[2] = {}, v[2];
#pragma unroll 1
    for (int p = part; p < pixels.count(); p += count) {
      load_pair<T>(v, w.at(pixels.m, g.in_lane + l) + pixels.at(p));
      own[0] += v[0], own[1] += v[1];
    }
    partial[2 * i] = own[0], partial[2 * i + 1] = own[1];
  }
}

/// The same by the warps' products: 32 pixels of eight lanes times ones.
template <class T>
GHOST_DEVICE void sum_octets(const Work<T>& w, const Stage& g, const Pixels<T>& pixels, float* partial, int count) {
  const uint32_t ones = Diagonal().of(pack<T>(1.f, 1.f), 0);
  const unsigned char* const map = w.at(pixels.m, g.in_lane);
  const int octets = g.lanes / 8, all = pixels.count(), own = lane();
#pragma unroll 1
  for (int i = warp(); i < octets * count; i += warps()) {
    int part = 0, octet = i;
#pragma unroll 1
    for (; octet >= octets; octet -= octets) part++;
    float sums[4] = {};
#pragma unroll 1
    for (int p = 32 * part; p < all; p += 32 * count) {
      uint32_t a[4];
      load_matrices(a, p + own < all ? map + pixels.at(p + own) + octet * 16 : w.zeros());
      multiply_add(T{}, sums, a, ones, ones, sums);
    }
    float first = sums[0] + sums[2], second = sums[1] + sums[3];
#pragma unroll
    for (int bits = 4; bits < 32; bits *= 2) first += value_across(first, bits), second += value_across(second, bits);
    if (own < 4) {
      float* const to = partial + part * g.lanes + octet * 8 + 2 * own;
      to[0] = first, to[1] = second;
    }
  }
}

/// Adds up each lane over the pixels of this step, in an order that only depends on the number of threads; at the last
/// step of an image the sums of the part go to memory. Has a barrier within.
///
/// The map of `out` is floats: sums of all lanes, then of all lanes once more for each of `count` parts of the pixels.
template <class T>
GHOST_DEVICE void sum(const Work<T>& w, const Stage& g) {
  const Pixels<T> pixels(w, g.in, w.rows(w.map(g.in)), g.in);
  float *const sums = reinterpret_cast<float*>(w.shared + w.map(g.out).at), *const partial = sums + g.lanes;
  const int count = sizeof(T) == 2 ? most(g.count / 8, 1) : g.count;
  if constexpr (sizeof(T) == 2)
    sum_octets(w, g, pixels, partial, count);
  else
    sum_pairs(w, g, pixels, partial, count);
  sync_block();
#pragma unroll 1
  for (int l = thread(); l < g.lanes; l += threads()) {
    float all = w.step.first ? 0.f : sums[l];
#pragma unroll 1
    for (int part = 0; part < count; part++) all += partial[part * g.lanes + l];
    sums[l] = all;
    if (w.step.last)
      w.a.sums[(w.step.image * w.launch.places() + block()) * g.channels + g.channel + layer_of_blocks() * g.lane_step +
               l] = all;
  }
}

/// Means of each lane over an image, from the sums of its parts: a pixel, or one for each of several images.
template <class T>
GHOST_DEVICE void mean(const Work<T>& w, const Stage& g) {
  constexpr int N = 4;
  const Map& m = w.map(g.out);
  const int images = w.columns(g.out).count.value;
#pragma unroll 1
  for (int i = thread(); i < images * g.items.value; i += threads()) {
    const int p = divide(i, g.items), l = (i - p * g.items.value) * N;
    const int64_t wanted = w.step.image * images + p, image = wanted < w.a.images ? wanted : w.a.images - 1;
    const float* from = (g.tensor > 0 ? w.a.sums : w.a.known) + image * g.count * g.lanes + l;
    Vector<float, N> all{};
#pragma unroll 1
    for (int part = 0; part < g.count; part++)
      all = add(all, *reinterpret_cast<const Vector<float, N>*>(from + int64_t{part} * g.lanes));
    auto* const to = reinterpret_cast<Pair<T>*>(w.at(m, l) + pixel(m, 0, p + m.halo));
#pragma unroll
    for (int j = 0; j < N / 2; j++)
      to[j] = {narrow<T>(all.values[2 * j] * g.low), narrow<T>(all.values[2 * j + 1] * g.low)};
  }
}

}  // namespace ghost::cuda
