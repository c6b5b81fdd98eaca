// What a thread block knows while it works: its part, the rows of this step, and where pixels of a map are.
#pragma once
#include "launch.h"
#include "pairs.h"

namespace ghost::cuda {

template <class T>
struct Arguments {
  const T* inputs[2];    // images x height x width x channels
  T* out;                // images x height x width x channels
  T* between;            // the same of what a block within a launch makes
  const T* residual;     // as out
  const T* scale;        // images x lanes of the map that is multiplied, or null: lanes in shared memory
  const T* matrices;     // weights of 1x1 convolutions
  const float* vectors;  // all other parameters
  float* sums;           // images x parts x lanes: what a launch writes,
  const float* known;    // and what it reads
  int64_t images;
};

/// The pointers of a call, with their type.
template <class T>
Arguments<T> arguments_of(const Call& c) {
  const auto typed = [](const void* p) { return static_cast<const T*>(p); };
  return {{typed(c.inputs[0]), typed(c.inputs[1])},
          static_cast<T*>(c.out),
          static_cast<T*>(c.between),
          typed(c.residual),
          typed(c.scale),
          typed(c.matrices),
          c.vectors,
          c.sums,
          c.known,
          c.images};
}

struct Rows {
  int begin, end;
  GHOST_DEVICE int size() const { return end - begin; }
};

/// Where a thread block is in its work. It is in shared memory, since stages need the registers; one thread writes it.
struct Step {
  int64_t image;
  int from, to;     // output rows of a step
  int first, last;  // step of an image
};

/// What is in the first bytes of shared memory.
struct Shared {
  Columns columns[kMaps];  // of every map
  Step steps[3];
  alignas(16) unsigned char zeros[16];
  unsigned char spare[8][16];  // where lanes of a warp write what nobody wants
};
static_assert(sizeof(Shared) <= kOwnBytes);

template <class T>
struct Work {
  const Launch& launch;
  const Arguments<T>& a;
  unsigned char* shared;
  const Step& step;

  GHOST_DEVICE const Map& map(int index) const { return launch.map[index]; }
  GHOST_DEVICE const Columns& columns(int index) const {
    return reinterpret_cast<const Shared*>(shared)->columns[index];
  }
  /// Lanes of a map from `lane` on, at its first pixel.
  GHOST_DEVICE unsigned char* at(const Map& m, int lane) const { return shared + m.at + lane * int{sizeof(T)}; }

  /// 16 bytes for what nobody wants; those of eight lanes side by side are in different banks.
  GHOST_DEVICE unsigned char* spare() const { return reinterpret_cast<Shared*>(shared)->spare[lane() & 7]; }

  GHOST_DEVICE const unsigned char* zeros() const { return reinterpret_cast<const Shared*>(shared)->zeros; }

  /// Rows that this step adds to a map, outside of the image too.
  GHOST_DEVICE Rows padded_rows(const Map& m) const {
    return {step.from * m.reach.per + (step.first ? -m.reach.before : m.reach.after),
            step.to * m.reach.per + m.reach.after};
  }
  GHOST_DEVICE Rows rows(const Map& m) const {
    const Rows r = padded_rows(m);
    const int begin = most(r.begin, 0);
    return {begin, most(least(r.end, m.height), begin)};
  }
};

/// The place of a row in its ring; a few rows outside of the image have one, too.
GHOST_DEVICE int slot_of(const Map& m, int row) {
  const int n = row + 8 * m.rows.value;
  return n - divide(n, m.rows) * m.rows.value;
}
/// The place of a row that comes `rows` after one whose place is known.
GHOST_DEVICE int slot_after(const Map& m, int slot, int rows) {
  const int n = slot + rows;
  return n >= m.rows.value ? n - m.rows.value : n;
}
/// A place of a map one row on, which may be the first of the ring again.
GHOST_DEVICE int next_row(int at, int row, int ring) {
  const auto on = static_cast<uint32_t>(at + row), wrapped = on - static_cast<uint32_t>(ring);
  return static_cast<int>(on < wrapped ? on : wrapped);
}

/// Bytes from the first pixel of a map to another one.
GHOST_DEVICE int pixel(const Map& m, int slot, int column) { return slot * m.row + column * m.pitch; }

/// What a warp does of a stage that has `outers` x `inners` items: some of them one after the other. `begin` is called
/// with the outer number where that changes, `each` with the inner one.
template <class T, class Begin, class Each>
GHOST_DEVICE void for_share(const Work<T>& w, int outers, int inners, const Begin& begin, const Each& each) {
  const int all = outers * inners, share = divide(all + w.launch.warps.value - 1, w.launch.warps);
  int inner = warp() * share, left = least(share, all - inner), outer = 0;
#pragma unroll 1
  for (; left > 0; outer++, inner -= inners) {
    if (inner >= inners) continue;
    begin(outer);
    const int end = least(inner + left, inners);
    left -= end - inner;
#pragma unroll 1
    for (; inner < end; inner++) each(inner);
  }
}

/// Pixels of some rows of a map, numbered row by row: where each is in shared memory and in the map.
template <class T>
struct Pixels {
  const Map& m;
  Columns columns;  // that are counted: the map's, or those of one that is made of it
  Rows rows;
  int start, shift;  // bytes of the first row; from columns counted to places in a row

  GHOST_DEVICE Pixels(const Work<T>& w, int index, Rows r, int of)
      : m(w.map(index)),
        columns(w.columns(of)),
        rows(r),
        start(slot_of(m, r.begin) * m.row),
        shift((columns.begin - w.columns(index).origin + m.halo) * m.pitch) {}

  GHOST_DEVICE int count() const { return rows.size() * columns.count.value; }
  GHOST_DEVICE int row_of(int p) const { return divide(p, columns.count); }
  GHOST_DEVICE int at(int row, int column) const {
    return next_row(start, row * m.row, m.ring) + column * m.pitch + shift;
  }
  GHOST_DEVICE int at(int p) const {
    const int row = row_of(p);
    return at(row, p - row * columns.count.value);
  }
};

/// Goes through the vectors of all pixels, row by row: a row is contiguous in memory, and in a map but for the bytes
/// between pixels. A warp has pieces of rows; `begin` is called with the row, `each` with the number of a vector in its
/// row and of its pixel.
template <class T, class Begin, class Each>
GHOST_DEVICE void for_vectors(const Pixels<T>& pixels, const Stage& g, const Begin& begin, const Each& each) {
  const int across = pixels.columns.count.value * g.items.value, pieces = g.pieces.value;
  const int shares = pixels.rows.size() * pieces;
#pragma unroll 1
  for (int share = warp(); share < shares; share += warps()) {
    const int row = divide(share, g.pieces), piece = share - row * pieces;
    begin(row);
#pragma unroll 1
    for (int i = piece * 32 + lane(); i < across; i += pieces * 32) each(i, divide(i, g.items));
  }
}

}  // namespace ghost::cuda
