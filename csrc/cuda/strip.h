// What a kernel is told of its work (`Launch`): maps in shared memory, and the stages that go from map to map.
//
// A thread block computes a band of rows and a strip of columns of the output, some rows at a step. A map holds the
// rows that are still to be read, in a ring. So nothing is computed twice between steps, and shared memory does not
// grow with the height of a map.
#pragma once
#include "shape.h"

namespace ghost::cuda {

/// A division by what is known before a kernel starts: n / d for n < 2^32 / d.
struct Divisor {
  int32_t value;
  uint32_t magic;  // 0 where the value is 1
};

GHOST_HOST_DEVICE Divisor divisor(int d) {
  return {d, d == 1 ? 0u : static_cast<uint32_t>(((uint64_t{1} << 32) + d - 1) / d)};
}

/// Rows and columns of a map that some of the output need: of output rows [a, b) they are [a per - before, b per +
/// after), and so of columns.
struct Reach {
  int32_t per, before, after;
};

/// The reach of what a convolution reads, padded by kernel / 2, if its result is read so far.
GHOST_HOST_DEVICE Reach read_by(Reach out, int kernel, int stride) {
  const int half = kernel / 2;
  return {out.per * stride, out.before * stride + half, out.after * stride + kernel - half - stride};
}

/// Pixels x lanes in shared memory. Beside the columns of a strip are `halo` of zeros, which a row shares with the next
/// one.
struct Map {
  int32_t at;             // bytes in shared memory
  int32_t pitch, row;     // bytes from pixel to pixel, and from row to row
  int32_t ring;           // bytes of all rows
  int32_t halo;           // columns of zeros
  int32_t padded;         // whether rows outside of the image are read, as zeros, and no load writes them
  int32_t height, width;  // of the whole map
  Reach reach;
  int32_t before;  // of the map that reaches farthest among those that share this memory: there its columns begin
  Divisor rows;    // of the ring
};

enum class Kind : int32_t {
  load,       // rows of an input to `out`
  product,    // a 1x1 convolution
  depthwise,  // a depthwise convolution
  activate,   // an activation that is more than two bounds, in place
  scale,      // times an excitation, in place
  sum,        // adds up each lane over the pixels, and at the end writes the sums of the part
  mean,       // the means of an image, from the sums of its parts, as a pixel
  store,      // lanes to channels of the output, plus a residual
  join,       // the same to a map, which the next block reads
};

/// A stage computes the rows of `out` that this step adds. Where there are chunks, a part has `lanes` of each
/// (1 + multiplier) group of lanes, and what a chunk adds to places is in `weight_step` and `lane_step`.
struct Stage {
  Kind kind;
  int32_t in, out;  // maps
  int32_t in_lane, out_lane, lanes;
  Divisor items;           // lanes as the stage takes them: pairs, vectors, or groups of a product's tiles
  int32_t unit;            // of load, scale, store and join: bytes that are side by side in memory and in the map
  Divisor pieces;          // of these: pieces of a row that warps take
  int32_t depth, tail;     // of a product: steps of 16 inputs, and whether the last one has only 8
  int32_t rows;            // of a depthwise convolution in half precision: rows of a tile
  int32_t kernel, stride;  // of a product: the kind of tile
  int32_t weight, bias, slopes, act;
  int32_t apart;      // elements of a weight from 16 inputs to the next
  int32_t parameter;  // of depthwise: the lane of its first parameters
  float low, high;    // bounds of the result; of mean: `low` is one by the number of pixels
  int32_t tensor;     // of load: which input; of store and join: a residual's map, kNoMap or kResidual; of mean:
                      // whether this launch has written the sums itself
  int32_t channel, channels;  // of load and store: the first of the pixel's, and how many a pixel has
  int32_t count;              // of mean: parts; of sum: groups of threads
  int32_t primary, group;     // of store and join: channels from `primary` on are in lanes from `group` on, every
  Divisor multiplier;         // `multiplier`-th one
  int32_t weight_step, lane_step;
  int32_t once;     // only at the first step of an image
  int32_t sync;     // whether a barrier follows: the next stage reads or overwrites what this one or one before has
  int32_t keep;     // of store: the sum with the residual is left in the map, too
  int32_t pads;     // of load: whether rows outside of the image are read
  int32_t between;  // of store: to the map between two blocks of the launch, and by the first chunk only
};

constexpr int kMaps = 20, kStages = 48, kOwnBytes = 896;  // of shared memory: `Shared` in work.h
constexpr int kNoMap = -1, kResidual = -2;                // of a store: no residual, or the argument of that name

/// How the map that is loaded first is read from an image, if it is: a pixel has the numbers of a window, channel by
/// channel.
struct Window {
  int32_t size, stride, padding;    // size 0: there is no image
  int32_t channels, height, width;  // of the image
  int32_t channel, row, column;     // elements from one to the next
  Divisor taps, columns;            // of a channel, and of a row of it
};

/// One kernel launch. A thread block has one part (band, strip, chunk) of every `grid`-th image.
struct Launch {
  Divisor warps;
  int32_t threads, shared, grid;  // grid: thread blocks that share the images of a part
  int32_t height, width;          // of the output
  int32_t band, strip, step;      // output rows and columns of a part, rows of a step
  int32_t bands, strips, chunks;
  int32_t maps, stages;
  int32_t images_at_once;  // of an excitation by itself: images are its pixels
  int32_t images;          // of the call, as many as there are at once counted as one
  Window window;
  Map map[kMaps];
  Stage stage[kStages];

  GHOST_HOST_DEVICE int places() const { return bands * strips; }
  GHOST_HOST_DEVICE int parts() const { return places() * chunks; }
};

/// Rows of a map that a step adds, and columns that a strip has, at most.
struct Extent {
  int32_t rows, columns;
};
GHOST_HOST_DEVICE Extent extent_of(const Launch& l, const Map& m) {
  return {least(m.reach.per ? l.step * m.reach.per : 1, m.height),
          least(l.strip * m.reach.per + m.reach.before + m.reach.after, m.width)};
}
/// Pieces of a row of so many vectors a pixel, so that half of the warps have one, but none of less than 32 vectors.
GHOST_HOST_DEVICE int pieces_of(const Launch& l, const Map& m, int vectors) {
  const Extent e = extent_of(l, m);
  int pieces = 1;
  while (e.rows * pieces < l.threads / 64 && 64 * pieces <= e.columns * vectors) pieces *= 2;
  return pieces;
}

/// Columns of a map that a strip has.
struct Columns {
  int32_t begin, origin;  // origin: the column that is first in memory
  Divisor count, groups;  // groups: of kGroup columns, which are computed at once
};
constexpr int kGroup = 8;
// Kinds of tiles of a product: how many times 16 pixels a warp has. Of the last one there are 16 pixels and 32 outputs,
// and weights are read ahead, which is for those that the cache of the processor does not hold.
constexpr int kWideTile = 2, kTallTile = 4, kSmallTile = 1, kAheadTile = 0;
constexpr int kAhead = 4;  // steps of 16 inputs
constexpr int kKept = 1;   // steps of 16 inputs up to which a warp keeps a product's weight in registers
GHOST_HOST_DEVICE int rows_of_tile(int kind) { return kind == kAheadTile ? 1 : kind; }
GHOST_HOST_DEVICE int columns_of_tile(int kind) {  // of 8 outputs
  return kind == kWideTile || kind == kAheadTile ? 4 : 2;
}
// Rows of a tile of a depthwise convolution in half precision.
constexpr int kHighTile = 4, kLowTile = 2;
GHOST_HOST_DEVICE constexpr bool has_rows(int rows, int kernel) { return rows == kLowTile || kernel == 3; }

/// In float32 weights are not read ahead, and tall ones need more registers than there are.
GHOST_HOST_DEVICE constexpr bool has_tile(int kind, int element) {
  return element == 2 || kind == kWideTile || kind == kSmallTile;
}
constexpr float kNoBound = __builtin_huge_valf();

GHOST_HOST_DEVICE Columns columns_of(const Map& map, int begin, int end) {
  const int from = most(begin * map.reach.per - map.reach.before, 0);
  const int to = least(end * map.reach.per + map.reach.after, map.width);
  const int origin = most(begin * map.reach.per - map.before, 0);
  return {from, origin, divisor(most(to - from, 1)), divisor(cdiv(most(to - from, 1), kGroup))};
}
}  // namespace ghost::cuda
