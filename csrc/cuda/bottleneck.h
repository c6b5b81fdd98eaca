// A Ghost bottleneck, a tile of its output a thread block: the expanded map is made in chunks of channels in shared
// memory, and each chunk goes into the second convolution's sums, which stay in registers, before the next is made.
#pragma once
#include "stages.h"

namespace ghost::cuda {

/// Which of its launches this is: the only one; the squeeze; what comes after the squeeze.
enum class Phase : int32_t { whole, squeeze, project };

template <class T>
struct Arguments {
  const T* x;            // images x height x width x channels
  const T* matrices;     // weights of 1x1 convolutions
  const float* vectors;  // all other parameters
  T* out;                // images x height x width x kept2
  float* sums;           // images x tiles x lanes, between the two launches
  const T* residual;     // as out; a Ghost module's alone
  const T* scale;        // images x channels; a Ghost module's alone
  bool vectors_of_x;     // x may be read 16 bytes at a time
  Phase phase;
};

template <class T>
GHOST_DEVICE Epilogue epilogue_of(const Arguments<T>& a, const Conv& conv, int from = 0) {
  return {a.vectors + conv.bias + from, conv.slopes < 0 ? nullptr : a.vectors + conv.slopes + from, conv.act};
}

/// The block's tile, with all that its stages need.
template <class T>
struct Tile {
  const Block& b;
  const Plan& plan;
  const Arguments<T>& a;
  unsigned char* shared;
  const Regions& r;  // in shared memory: registers are short

  template <class V = T>
  GHOST_DEVICE V* at(int bytes) const {
    return reinterpret_cast<V*>(shared + bytes);
  }

  /// Rows of chunk `index` as the second convolution reads them, times its lanes' excitation if that is given. Ends
  /// with a barrier.
  GHOST_DEVICE T* chunk(int index, const float* scale) const {
    const int all = chunk_lanes(b), narrow_row = row(b.chunk, sizeof(T)), wide_row = row(all, sizeof(T));
    T* const primary = at(plan.primary_at);
    T* const last = rows_of(index);
    T* const expanded = b.kernel ? at(plan.expanded_at) : last;
    const int tiles = b.chunk / kColumns, first = index * b.chunk;
    pointwise<2>(primary, narrow_row, at(0), row(b.channels, sizeof(T)), r.x.pixels(), b.channels,
                 a.matrices + b.first.weight + index * tiles * kWeightTile, chunks(b) * tiles, tiles,
                 epilogue_of(a, b.first, first));
    sync_block();
    const int made = b.chunk * b.multiplier;
    const float* const own = b.kernel ? nullptr : scale;
    copy_primary(expanded, wide_row, r.expanded, primary, narrow_row, r.x, b.chunk, own);
    if (made)
      depthwise(expanded + b.chunk, wide_row, r.expanded, primary, narrow_row, r.x, b.chunk, b.multiplier, b.chunk,
                b.cheap_kernel, 1, a.vectors + b.cheap.weight + index * b.cheap_kernel * b.cheap_kernel * made,
                epilogue_of(a, b.cheap, index * made), own ? own + b.chunk : nullptr);
    sync_block();
    if (b.kernel) {
      depthwise(last, wide_row, r.inner, expanded, wide_row, r.expanded, all, 1, 0, b.kernel, b.stride,
                a.vectors + b.depthwise.weight + index * b.kernel * b.kernel * all,
                epilogue_of(a, b.depthwise, index * all), scale);
      sync_block();
    }
    return last;
  }

  GHOST_DEVICE T* rows_of(int index) const {
    const int wide_row = row(chunk_lanes(b), sizeof(T));
    return at(plan.reduced_at) + (plan.kept ? index * r.inner.pixels() * wide_row : 0);
  }

  /// From the sums of this tile, which is then all of the image, or null: those of all tiles, to the excitation. Ends
  /// with a barrier.
  GHOST_DEVICE const float* excitation(const float* sums) const {
    const int count = sums ? 1 : plan.tiles();
    if (!sums) sums = a.sums + block() / count * count * lanes(b);
    float *means = at<float>(plan.means_at), *scale = at<float>(plan.scale_at);
    const int all = lanes(b);
    const float pixels = static_cast<float>(int64_t{out_height(b)} * out_width(b));
#pragma unroll 1
    for (int l = thread(); l < all; l += threads()) {
      float sum = 0.f;
#pragma unroll 1
      for (int i = 0; i < count; i++) sum += sums[int64_t{i} * all + l];
      means[l] = sum / pixels;
    }
    sync_block();
    excite(scale, at<float>(plan.hidden_at), means, all, b.hidden, a.vectors + b.reduce.weight,
           epilogue_of(a, b.reduce), a.vectors + b.expand.weight, epilogue_of(a, b.expand), b.gate);
    return scale;
  }

  /// Through all chunks, once or twice: for the sums of every lane over the tile, to `sums`, if that is given; then,
  /// unless the squeeze is alone, for the second Ghost module's primary channels, into shared memory over all that lay
  /// there. Ends with a barrier.
  GHOST_DEVICE void sweep(float* sums) const {
    const int all = chunk_lanes(b), wide_row = row(all, sizeof(T)), steps = all / kDepth;
    const int tiles = cdiv(b.primary2, kColumns), pixels = r.inner.pixels();
    const int tile = warp() % plan.columns * kProjectColumns, count = least(tiles - tile, kProjectColumns);
    const int first = warp() / plan.columns * kProjectRows * kRows;
    const bool mine = first < pixels && count > 0, made = sums && plan.kept;
    const float* scale = nullptr;
    float acc[kProjectRows][kProjectColumns][4] = {};
#pragma unroll 1
    for (int pass = sums ? 0 : 1; pass < (a.phase == Phase::squeeze ? 1 : 2); pass++) {
      if (pass == 1 && b.hidden) scale = excitation(sums);
#pragma unroll 1
      for (int i = 0; i < chunks(b); i++) {
        const float* own = scale ? scale + i * all : nullptr;
        T* const rows = pass == 1 && made ? rows_of(i) : chunk(i, own);
        if (pass == 0) {
          sum_rows(sums + i * all, at<float>(plan.partial_at), rows, wide_row, pixels, all);
          continue;
        }
        if (made) {
          excite_rows(rows, wide_row, pixels, all, own);
          sync_block();
        }
        if (mine)
          accumulate<T>(acc, rows, wide_row, first, pixels,
                        a.matrices + b.second.weight + (int64_t{i} * steps * tiles + tile) * kWeightTile, tiles, count,
                        steps);
      }
      sync_block();
    }
    if (a.phase == Phase::squeeze) return;
    if (mine)
      store(at(plan.second_at), row(b.primary2, sizeof(T)), acc, first, pixels, tile * kColumns, count,
            epilogue_of(a, b.second));
    sync_block();
  }

  /// The shortcut by convolutions, as rows of all output channels. Ends with a barrier.
  GHOST_DEVICE const T* shortcut(const T* x) const {
    const int wide = row(b.channels, sizeof(T)), tiles = cdiv(b.kept2, kColumns), depth = up(b.channels, kDepth);
    T* const between = at(plan.shortcut_depthwise_at);
    const Epilogue after_depthwise = epilogue_of(a, b.shortcut_depthwise);
    const int across = r.out.across.size(), halo = b.shortcut / 2;
#pragma unroll 1
    for (int i = thread(); i < r.out.pixels() * depth; i += threads()) {
      const int p = i / depth, c = i % depth;
      const int y = (r.out.down.begin + p / across) * b.stride, at = (r.out.across.begin + p % across) * b.stride;
      float sum = 0.f;
      if (c < b.channels) {
#pragma unroll 1
        for (int dy = 0; dy < b.shortcut; dy++) {
          for (int dx = 0; dx < b.shortcut; dx++) {
            const int down = y + dy - halo, right = at + dx - halo;
            if (down >= 0 && down < b.height && right >= 0 && right < b.width)
              sum += widen(x[(int64_t{down} * b.width + right) * b.channels + c]) *
                     constant(a.vectors + b.shortcut_depthwise.weight + (dy * b.shortcut + dx) * b.channels + c);
          }
        }
        sum = finish(sum, after_depthwise, c);
      }
      between[p * wide + c] = narrow<T>(sum);
    }
    sync_block();
    T* const rows = at(plan.shortcut_at);
    pointwise<2>(rows, row(b.kept2, sizeof(T)), between, wide, r.out.pixels(), b.channels,
                 a.matrices + b.shortcut_pointwise.weight, tiles, tiles, epilogue_of(a, b.shortcut_pointwise));
    sync_block();
    return rows;
  }
};

/// One copy of a tile's regions for all threads, in the first bytes of shared memory. Ends with a barrier.
GHOST_DEVICE const Regions& share(const Regions& r, unsigned char* shared) {
  static_assert(sizeof(Regions) <= kOwnBytes);
  auto* const copy = reinterpret_cast<Regions*>(shared);
  if (thread() == 0) *copy = r;
  sync_block();
  return *copy;
}

template <class T>
GHOST_DEVICE void bottleneck(const Block& b, const Plan& plan, const Arguments<T>& a, unsigned char* shared) {
  const int tile = static_cast<int>(block() % plan.tiles());
  const int64_t image = block() / plan.tiles(), pixels = int64_t{out_height(b)} * out_width(b);
  const bool alone = a.phase == Phase::squeeze;
  const T* x = a.x + image * b.height * b.width * b.channels;
  const Tile<T> t{b, plan, a, shared + kOwnBytes, share(regions(b, plan, tile, alone), shared)};

  load(t.at(0), row(b.channels, sizeof(T)), x, b.width, b.channels, t.r.x, a.vectors_of_x, static_cast<T*>(nullptr));
  sync_block();
  float* const sums = alone ? a.sums + (image * plan.tiles() + tile) * lanes(b) : t.template at<float>(plan.means_at);
  t.sweep(b.hidden && a.phase != Phase::project ? sums : nullptr);
  if (alone) return;
  const T* shortcut = b.shortcut > 0 ? t.shortcut(x) : nullptr;
  const Epilogue after_cheap = b.multiplier2 ? epilogue_of(a, b.cheap2) : Epilogue{};
  const float* cheap = b.multiplier2 ? a.vectors + b.cheap2.weight : nullptr;
  write(a.out + image * pixels * b.kept2, t.r.out, out_width(b), t.at(plan.second_at), row(b.primary2, sizeof(T)),
        t.r.inner, 0, b.primary2, b, cheap, after_cheap, shortcut, row(b.kept2, sizeof(T)),
        b.shortcut == 0 ? x : nullptr);
}

}  // namespace ghost::cuda
