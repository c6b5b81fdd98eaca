// Which pixels a tile needs of each map, and how wide rows of shared memory are: plain functions, for kernels and host.
#pragma once
#include "shape.h"

namespace ghost::cuda {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;  // of a warp's product
constexpr int kWeightTile = kDepth * kColumns;        // weights that one product reads
constexpr int kModuleChunk = 32;                      // primary channels that a Ghost module alone has at once
constexpr int kOwnBytes = 128;                        // of shared memory, before what a plan lays out
constexpr int kProjectRows = 2, kProjectColumns = 4;  // products that a warp keeps of the second convolution

GHOST_HOST_DEVICE int cdiv(int a, int b) { return (a + b - 1) / b; }
GHOST_HOST_DEVICE int up(int n, int to) { return cdiv(n, to) * to; }
GHOST_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
GHOST_HOST_DEVICE int most(int a, int b) { return a > b ? a : b; }

/// Pixels from `begin` up to `end` in one direction. Never outside of the map: what is not there is zero to whoever
/// reads it.
struct Span {
  int begin, end;
  GHOST_HOST_DEVICE int size() const { return end - begin; }
};

/// What a convolution padded by kernel / 2 reads for these outputs.
GHOST_HOST_DEVICE Span read_by(Span out, int kernel, int stride, int limit) {
  const int begin = out.begin * stride - kernel / 2, end = (out.end - 1) * stride - kernel / 2 + kernel;
  return {most(begin, 0), least(end, limit)};
}

struct Region {
  Span down, across;
  GHOST_HOST_DEVICE int pixels() const { return down.size() * across.size(); }
};

GHOST_HOST_DEVICE Region read_by(Region out, int kernel, int stride, int height, int width) {
  return {read_by(out.down, kernel, stride, height), read_by(out.across, kernel, stride, width)};
}

GHOST_HOST_DEVICE int out_size(int in, int stride) { return (in - 1) / stride + 1; }
GHOST_HOST_DEVICE int out_height(const Block& b) { return out_size(b.height, b.stride); }
GHOST_HOST_DEVICE int out_width(const Block& b) { return out_size(b.width, b.stride); }

/// What a tile needs: of the output, of the second Ghost module's input, of the expanded map, of x.
struct Regions {
  Region out, inner, expanded, x;
};

/// `alone`: without the second Ghost module, for the squeeze.
GHOST_HOST_DEVICE Regions regions(const Block& b, const Plan& p, int tile, bool alone) {
  const int height = out_height(b), width = out_width(b);
  const int top = tile / p.tiles_across * p.tile_height, left = tile % p.tiles_across * p.tile_width;
  Regions r;
  r.out = {{top, least(top + p.tile_height, height)}, {left, least(left + p.tile_width, width)}};
  r.inner = alone ? r.out : read_by(r.out, b.multiplier2 ? b.cheap_kernel2 : 1, 1, height, width);
  r.expanded = b.kernel ? read_by(r.inner, b.kernel, b.stride, b.height, b.width) : r.inner;
  r.x = b.primary && b.multiplier ? read_by(r.expanded, b.cheap_kernel, 1, b.height, b.width) : r.expanded;
  return r;
}

/// Elements from one pixel's row in shared memory to the next: 16 bytes more than a multiple of 32, so that eight rows
/// are in different banks.
GHOST_HOST_DEVICE int row(int lanes, int element) { return up(lanes, kDepth) + 16 / element; }

GHOST_HOST_DEVICE int chunk_lanes(const Block& b) { return b.chunk * (1 + b.multiplier); }
GHOST_HOST_DEVICE int chunks(const Block& b) { return cdiv(b.primary, b.chunk); }
GHOST_HOST_DEVICE int lanes(const Block& b) { return chunks(b) * chunk_lanes(b); }

}  // namespace ghost::cuda
