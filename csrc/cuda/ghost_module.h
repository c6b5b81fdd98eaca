// A Ghost module alone: a tile of x, times its excitation, in shared memory; primary channels a chunk at a time through
// the warps' products, and both halves from there into the output.
#pragma once
#include "bottleneck.h"

namespace ghost::cuda {

template <class T>
GHOST_DEVICE void ghost_module(const Block& b, const Plan& plan, const Arguments<T>& a, unsigned char* shared) {
  const int tile = static_cast<int>(block() % plan.tiles()), stride = row(b.channels, sizeof(T));
  const int64_t image = block() / plan.tiles(), pixels = int64_t{b.height} * b.width;
  const Regions& r = share(regions(b, plan, tile, false), shared);
  shared += kOwnBytes;
  T *const rows = reinterpret_cast<T*>(shared), *const primary = reinterpret_cast<T*>(shared + plan.primary_at);
  T* const out = a.out + image * pixels * b.kept2;

  load(rows, stride, a.x + image * pixels * b.channels, b.width, b.channels, r.x, a.vectors_of_x,
       a.scale ? a.scale + image * b.channels : nullptr);
  const int tiles = cdiv(b.primary2, kColumns), primary_row = row(kModuleChunk, sizeof(T));
  const float* cheap = b.multiplier2 ? a.vectors + b.cheap2.weight : nullptr;
  const Epilogue after_cheap = b.multiplier2 ? epilogue_of(a, b.cheap2) : Epilogue{};
  for (int first = 0; first < b.primary2; first += kModuleChunk) {
    const int count = least(b.primary2 - first, kModuleChunk);
    sync_block();
    pointwise<4>(primary, primary_row, rows, stride, r.x.pixels(), b.channels,
                 a.matrices + b.second.weight + first / kColumns * kWeightTile, tiles, cdiv(count, kColumns),
                 epilogue_of(a, b.second, first));
    sync_block();
    write(out, r.out, b.width, primary, primary_row, r.inner, first, count, b, cheap, after_cheap,
          static_cast<const T*>(nullptr), 0, a.residual ? a.residual + image * pixels * b.kept2 : nullptr);
  }
  if (!a.sums) return;
  sync_block();
  const int across = r.out.across.size();
  for (int c = thread(); c < b.kept2; c += threads()) {  // what the block has just written
    float sum = 0.f;
    for (int p = 0; p < r.out.pixels(); p++) {
      const int64_t at = int64_t{r.out.down.begin + p / across} * b.width + r.out.across.begin + p % across;
      sum += widen(out[at * b.kept2 + c]);
    }
    a.sums[(image * plan.tiles() + tile) * b.kept2 + c] = sum;
  }
}

/// Means of a map from the sums of its tiles: one thread a channel of an image.
template <class T>
GHOST_DEVICE void means(T* out, const float* sums, int64_t images, int tiles, int channels, int64_t pixels) {
  const int64_t i = block() * threads() + thread();
  if (i >= images * channels) return;
  const float* from = sums + i / channels * tiles * channels + i % channels;
  float sum = 0.f;
  for (int t = 0; t < tiles; t++) sum += from[int64_t{t} * channels];
  out[i] = narrow<T>(sum / static_cast<float>(pixels));
}

/// Packed parameters as kernels read them: out[i] = packed[index[i]], 0 where the index is -1; the first `count` in the
/// maps' dtype.
template <class T>
GHOST_DEVICE void gather(T* matrices, float* vectors, const float* packed, const int32_t* index, int64_t count,
                         int64_t all) {
  const int64_t i = block() * threads() + thread();
  if (i >= all) return;
  const float v = index[i] < 0 ? 0.f : packed[index[i]];
  if (i < count)
    matrices[i] = narrow<T>(v);
  else
    vectors[i - count] = v;
}

}  // namespace ghost::cuda
