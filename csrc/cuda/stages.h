// The stages between products, each by a whole block: pixels as rows of shared memory in, pixels out. A stage ends
// without a barrier; whoever reads what it wrote waits first.
#pragma once
#include "products.h"

namespace ghost::cuda {

/// A region of an image, height x width x channels, times its excitation if it has one; lanes past the channels as
/// zeros. `vectors`: 16 bytes at a time.
template <class T>
GHOST_DEVICE void load(T* out, int stride, const T* image, int width, int channels, const Region& region, bool vectors,
                       const T* scale) {
  constexpr int kVector = 16 / sizeof(T);
  struct alignas(16) Vector {
    T values[kVector];
  };
  const int across = region.across.size(), depth = up(channels, kDepth);
  const auto pixel = [&](int p) {
    return image + (int64_t{region.down.begin + p / across} * width + region.across.begin + p % across) * channels;
  };
  if (vectors) {
    const int per = depth / kVector;
#pragma unroll 1
    for (int i = thread(); i < region.pixels() * per; i += threads()) {
      const int p = i / per, c = i % per * kVector;
      Vector v{};
      if (c < channels) v = *reinterpret_cast<const Vector*>(pixel(p) + c);
      if (scale && c < channels) {
#pragma unroll
        for (int j = 0; j < kVector; j++) v.values[j] = narrow<T>(widen(v.values[j]) * widen(scale[c + j]));
      }
      *reinterpret_cast<Vector*>(out + p * stride + c) = v;
    }
  } else {
#pragma unroll 1
    for (int i = thread(); i < region.pixels() * depth; i += threads()) {
      const int p = i / depth, c = i % depth;
      T v = narrow<T>(0.f);
      if (c < channels) v = scale ? narrow<T>(widen(pixel(p)[c]) * widen(scale[c])) : pixel(p)[c];
      out[p * stride + c] = v;
    }
  }
}

/// Sums of a depthwise convolution for two neighbouring lanes at one pixel: taps outside of the region are zero.
/// `weight` has `taps_apart` floats from tap to tap.
template <class T>
GHOST_DEVICE void taps(float (&sum)[2], const T* in, int stride, const Region& region, int y, int x, int kernel,
                       const float* weight, int taps_apart) {
  const int across = region.across.size();
#pragma unroll 1
  for (int dy = 0; dy < kernel; dy++) {
    const int row = y + dy;
    if (row < region.down.begin || row >= region.down.end) continue;
    const T* line = in + ((row - region.down.begin) * across - region.across.begin) * stride;
    for (int dx = 0; dx < kernel; dx++) {
      const int column = x + dx;
      if (column < region.across.begin || column >= region.across.end) continue;
      const auto w = constant(reinterpret_cast<const Pair<float>*>(weight + (dy * kernel + dx) * taps_apart));
      float v[2];
      load_pair(v, line + column * stride);
      sum[0] += v[0] * w.first, sum[1] += v[1] * w.second;
    }
  }
}

constexpr int kStrip = 2;  // rows that a thread makes at once, one under another: most of what one reads the next does

/// The same for kStrip rows, of size D and stride S; `y` is the first row that is read.
template <int D, int S, class T>
GHOST_DEVICE void strip(float (&sum)[kStrip][2], const T* in, int stride, const Region& region, int y, int x,
                        const float* weight, int taps_apart) {
  constexpr int kReads = (kStrip - 1) * S + D;
  const int down = region.across.size() * stride;
#pragma unroll 1
  for (int dx = 0; dx < D; dx++) {
    const int column = x + dx;
    if (column < region.across.begin || column >= region.across.end) continue;
    const T* at = in + (y - region.down.begin) * down + (column - region.across.begin) * stride;
    float v[kReads][2] = {};
#pragma unroll
    for (int r = 0; r < kReads; r++)
      if (y + r >= region.down.begin && y + r < region.down.end) load_pair(v[r], at + r * down);
#pragma unroll
    for (int dy = 0; dy < D; dy++) {
      const auto w = constant(reinterpret_cast<const Pair<float>*>(weight + (dy * D + dx) * taps_apart));
#pragma unroll
      for (int o = 0; o < kStrip; o++) {
        sum[o][0] += v[o * S + dy][0] * w.first;
        sum[o][1] += v[o * S + dy][1] * w.second;
      }
    }
  }
}

/// What follows the sums of a strip: bias, activation, excitation; `rows` of them are there, `down` apart.
template <class T>
GHOST_DEVICE void store_strip(T* out, int down, const float (&sum)[kStrip][2], int rows, const Epilogue& after,
                              int channel, const float* scale) {
  const auto bias = constant(reinterpret_cast<const Pair<float>*>(after.bias + channel));
  const bool simple = after.act <= kRelu;
#pragma unroll
  for (int o = 0; o < kStrip; o++) {
    if (o >= rows) continue;
    float first = sum[o][0] + bias.first, second = sum[o][1] + bias.second;
    if (after.act == kRelu) first = relu(first), second = relu(second);
    if (simple && scale) first = widen(narrow<T>(first)) * scale[0], second = widen(narrow<T>(second)) * scale[1];
    store_pair(out + o * down, first, second);
  }
  if (simple) return;
#pragma unroll 1  // as in store
  for (int o = 0; o < least(rows, kStrip); o++) {
    float v[2];
    load_pair(v, out + o * down);
    for (int j = 0; j < 2; j++) {
      v[j] = activate(v[j], after, channel + j);
      if (scale) v[j] = widen(narrow<T>(v[j])) * scale[j];
    }
    store_pair(out + o * down, v[0], v[1]);
  }
}

/// The primary channels of a chunk, as the first lanes of a chunk of the expanded map.
template <class T>
GHOST_DEVICE void copy_primary(T* out, int out_stride, const Region& to, const T* in, int in_stride, const Region& from,
                               int chunk, const float* scale) {
  const int pairs = chunk / 2, across = to.across.size();
#pragma unroll 1
  for (int i = thread(); i < to.pixels() * pairs; i += threads()) {
    const int p = i / pairs, c = i % pairs * 2, y = to.down.begin + p / across, x = to.across.begin + p % across;
    float v[2];
    load_pair(v, in + ((y - from.down.begin) * from.across.size() + x - from.across.begin) * in_stride + c);
    if (scale) v[0] *= scale[c], v[1] *= scale[c + 1];
    store_pair(out + p * out_stride + c, v[0], v[1]);
  }
}

/// A depthwise convolution of `lanes` lanes, from rows to rows. `spread`: each lane that is read makes as many that are
/// written, `apart` lanes from each other.
template <class T>
GHOST_DEVICE void depthwise(T* out, int out_stride, const Region& to, const T* in, int in_stride, const Region& from,
                            int lanes, int spread, int apart, int kernel, int stride, const float* weight,
                            const Epilogue& after, const float* scale) {
  const int pairs = lanes / 2, across = to.across.size(), strips = cdiv(to.down.size(), kStrip);
  const int taps_apart = lanes * spread, down = across * out_stride;
#pragma unroll 1
  for (int i = thread(); i < strips * across * pairs; i += threads()) {
    const int place = i / pairs, c = i % pairs * 2, first = place / across * kStrip;
    const int y = (to.down.begin + first) * stride - kernel / 2;
    const int x = (to.across.begin + place % across) * stride - kernel / 2;
    T* const column = out + (first * across + place % across) * out_stride + c;
#pragma unroll 1
    for (int q = 0; q < spread; q++) {
      const int lane = q * apart + c;
      float sum[kStrip][2] = {};
      if (kernel == 3 && stride == 1)
        strip<3, 1>(sum, in + c, in_stride, from, y, x, weight + lane, taps_apart);
      else if (kernel == 3 && stride == 2)
        strip<3, 2>(sum, in + c, in_stride, from, y, x, weight + lane, taps_apart);
      else if (kernel == 5 && stride == 2)
        strip<5, 2>(sum, in + c, in_stride, from, y, x, weight + lane, taps_apart);
      else
#pragma unroll
        for (int o = 0; o < kStrip; o++)
          taps(sum[o], in + c, in_stride, from, y + o * stride, x, kernel, weight + lane, taps_apart);
      store_strip(column + q * apart, down, sum, to.down.size() - first, after, lane, scale ? scale + lane : nullptr);
    }
  }
}

/// Rows times the excitation, in place.
template <class T>
GHOST_DEVICE void excite_rows(T* rows, int stride, int pixels, int lanes, const float* scale) {
  const int pairs = lanes / 2;
#pragma unroll 1
  for (int i = thread(); i < pixels * pairs; i += threads()) {
    const int p = i / pairs, c = i % pairs * 2;
    float v[2];
    load_pair(v, rows + p * stride + c);
    store_pair(rows + p * stride + c, v[0] * scale[c], v[1] * scale[c + 1]);
  }
}

/// Sums over pixels of `lanes` lanes, in an order that the number of threads alone decides. `partial` holds 2 floats a
/// thread. Has a barrier within.
template <class T>
GHOST_DEVICE void sum_rows(float* sums, float* partial, const T* rows, int stride, int pixels, int lanes) {
  const int pairs = lanes / 2, groups = threads() / pairs, c = thread() % pairs * 2, group = thread() / pairs;
  if (group < groups) {
    float sum[2] = {}, v[2];
#pragma unroll 1
    for (int p = group; p < pixels; p += groups) {
      load_pair(v, rows + p * stride + c);
      sum[0] += v[0], sum[1] += v[1];
    }
    partial[group * lanes + c] = sum[0], partial[group * lanes + c + 1] = sum[1];
  }
  sync_block();
#pragma unroll 1
  for (int l = thread(); l < lanes; l += threads()) {
    float sum = 0.f;
#pragma unroll 1
    for (int g = 0; g < groups; g++) sum += partial[g * lanes + l];
    sums[l] = sum;
  }
}

/// gate(expand(reduce(means))): `lanes` means of shared memory to as many factors there. Has barriers within, and ends
/// with one.
GHOST_DEVICE void excite(float* scale, float* hidden, const float* means, int lanes, int units, const float* reduce,
                         const Epilogue& after_reduce, const float* expand, const Epilogue& after_expand, int gate) {
#pragma unroll 1
  for (int unit = warp(); unit < units; unit += warps()) {
    float sum = 0.f;
#pragma unroll 1
    for (int l = lane(); l < lanes; l += 32) sum += means[l] * constant(reduce + int64_t{unit} * lanes + l);
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (lane() == 0) hidden[unit] = finish(sum, after_reduce, unit);
  }
  sync_block();
#pragma unroll 1
  for (int l = thread(); l < lanes; l += threads()) {
    float sum = 0.f;
#pragma unroll 1
    for (int unit = 0; unit < units; unit++) sum += hidden[unit] * constant(expand + int64_t{unit} * lanes + l);
    scale[l] = apply_gate(finish(sum, after_expand, l), gate);
  }
  sync_block();
}

/// The end of a Ghost module: primary channels [first, first + count) of its region are rows of shared memory, and go
/// to the output with the cheap ones made of them.
///
/// `shortcut`: rows of all channels in shared memory, or null. `residual`: a map like the output, or null.
template <class T>
GHOST_DEVICE void write(T* image, const Region& to, int width, const T* in, int in_stride, const Region& from,
                        int first, int count, const Block& b, const float* weight, const Epilogue& after,
                        const T* shortcut, int shortcut_stride, const T* residual) {
  const int made = b.kept2 - b.primary2;
  const int cheap = made > 0 ? most(least((first + count) * b.multiplier2, made) - first * b.multiplier2, 0) : 0;
  const int columns = count + cheap, across = to.across.size(), halo = b.cheap_kernel2 / 2;
#pragma unroll 1
  for (int i = thread(); i < to.pixels() * columns; i += threads()) {
    const int p = i / columns, column = i % columns;
    const int y = to.down.begin + p / across, x = to.across.begin + p % across;
    float v;
    int channel;
    if (column < count) {
      channel = first + column;
      v = widen(in[((y - from.down.begin) * from.across.size() + x - from.across.begin) * in_stride + column]);
    } else {
      const int j = first * b.multiplier2 + column - count;  // among the cheap channels
      channel = b.primary2 + j;
      const T* source = in + j / b.multiplier2 - first;
      float sum = 0.f;
#pragma unroll 1
      for (int dy = 0; dy < b.cheap_kernel2; dy++) {
        const int row = y + dy - halo;
        if (row < from.down.begin || row >= from.down.end) continue;
        for (int dx = 0; dx < b.cheap_kernel2; dx++) {
          const int at = x + dx - halo;
          if (at < from.across.begin || at >= from.across.end) continue;
          sum += widen(source[((row - from.down.begin) * from.across.size() + at - from.across.begin) * in_stride]) *
                 constant(weight + (dy * b.cheap_kernel2 + dx) * made + j);
        }
      }
      v = widen(narrow<T>(finish(sum, after, j)));
    }
    const int64_t at = (int64_t{y} * width + x) * b.kept2 + channel;
    if (shortcut) v += widen(shortcut[p * shortcut_stride + channel]);
    if (residual) v += widen(residual[at]);
    image[at] = narrow<T>(v);
  }
}

}  // namespace ghost::cuda
