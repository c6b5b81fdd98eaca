// The maps and stages of a launch as they are added, and then: how far each map reaches, how many rows its ring has,
// and where it is in shared memory. Plain C++, no CUDA.
#pragma once
#include <algorithm>

#include "strip.h"

namespace ghost::cuda {

/// The sizes that a planner chooses.
struct Choice {
  int band, strip, step, chunks, threads;
};

class Layout {
 protected:
  Layout(int element, const Choice& choice, int height, int width) : element_(element), choice_(choice) {
    l_.height = height, l_.width = width, l_.images_at_once = 1, l_.grid = 1;
    l_.threads = choice.threads, l_.warps = divisor(cdiv(choice.threads, 32)), l_.band = choice.band,
    l_.strip = choice.strip, l_.step = choice.step;
    l_.bands = cdiv(height, l_.band), l_.strips = cdiv(width, l_.strip), l_.chunks = choice.chunks;
  }

  /// A map of `lanes` lanes by itself, or of some of those of a storage that several maps share. What it must reach
  /// follows from who reads it.
  int add(int height, int width, int lanes) { return add_map(height, width, add_storage(lanes)); }
  int add_map(int height, int width, int storage) {
    fits_ &= l_.maps < kMaps;
    const int index = fits_ ? l_.maps++ : kMaps - 1;
    Map& m = l_.map[index];
    m = {}, m.height = height, m.width = width;
    storage_of_[index] = storage, is_fixed_[index] = false;
    return index;
  }
  /// One that reaches so far, whoever reads it.
  int add_fixed(int height, int width, Reach reach, int storage) {
    const int index = add_map(height, width, storage);
    l_.map[index].reach = reach, is_fixed_[index] = true;
    return index;
  }
  int add_storage(int lanes, bool floats = false) {
    fits_ &= storages_ < kMaps;
    const int index = fits_ ? storages_++ : kMaps - 1;
    storage_[index] = {lanes, 0, 0, 0, 0, floats};
    return index;
  }
  static constexpr int kNoStorage = -1;  // of what is in global memory

  Stage& stage(Kind kind, int in, int out, int lanes) {
    fits_ &= l_.stages < kStages;
    Stage& g = l_.stage[fits_ ? l_.stages++ : kStages - 1];
    g = {}, g.kind = kind, g.in = in, g.out = out, g.lanes = lanes, g.kernel = g.stride = 1, g.tensor = kNoMap,
    g.slopes = -1, g.items = divisor(std::max(lanes / 2, 1)), g.unit = element_;
    g.low = -kNoBound, g.high = kNoBound;
    return g;
  }

  void lay_out() {
    if (!fits_) return;
    order_stages();
    spread_reaches();
    place_maps();
  }

  const int element_;
  const Choice choice_;
  Launch l_{};
  bool fits_ = true;

 private:
  struct Storage {
    int lanes, pixels_of_a_row, rows, halo, slack;
    bool floats;
  };

  /// How far a stage reads: the map of its result, its kernel and stride, and whether it takes groups of columns.
  struct Read {
    int map, by, kernel, stride;
    bool groups;
  };
  template <class Visit>
  static void each_read(const Stage& g, const Visit& visit) {
    const bool copies = g.kind == Kind::store || g.kind == Kind::join;
    if (g.kind == Kind::depthwise) visit(Read{g.in, g.out, g.kernel, g.stride, true});
    if (g.kind == Kind::product || copies) visit(Read{g.in, g.out, 1, 1, false});
    if (copies && g.tensor >= 0) visit(Read{g.tensor, g.out, 1, 1, false});
    if (g.kind == Kind::activate || g.kind == Kind::scale) visit(Read{g.out, g.out, 1, 1, false});
    if (g.kind == Kind::sum) visit(Read{g.in, g.in, 1, 1, false});
  }

  bool is_loaded(int map) const {
    return std::any_of(l_.stage, l_.stage + l_.stages,
                       [&](const Stage& g) { return g.kind == Kind::load && g.out == map; });
  }
  /// Whether one of two stages writes what the other reads or writes.
  bool is_in_turn(const Stage& a, const Stage& b) const {
    bool found = a.kind == Kind::sum && b.kind == Kind::mean;  // by way of global memory
    each_use(a, [&](const Use& one) {
      each_use(b, [&](const Use& other) {
        found |= one.storage == other.storage && (one.writes || other.writes) && one.lane < other.lane + other.lanes &&
                 other.lane < one.lane + one.lanes;
      });
    });
    return found;
  }
  struct Use {
    int storage, lane, lanes;
    bool writes;
  };
  template <class Visit>
  void each_use(const Stage& g, const Visit& visit) const {
    constexpr int kAll = 1 << 24;
    const auto use = [&](int map, int lane, int lanes, bool writes) {
      if (map >= 0 && storage_of_[map] >= 0) visit(Use{storage_of_[map], lane, lanes, writes});
    };
    const bool copies = g.kind == Kind::store || g.kind == Kind::join;
    use(g.in, g.kind == Kind::depthwise ? g.in_lane : 0, g.kind == Kind::depthwise ? up(g.lanes, kOctet) : kAll,
        g.keep);
    use(g.out, g.out_lane, g.kind == Kind::product || g.kind == Kind::depthwise ? up(g.lanes, kOctet) : kAll, true);
    if (copies) use(g.tensor, 0, kAll, false);
  }

  /// Puts stages that do not need each other side by side, with a barrier after all of them: a stage comes as early as
  /// those allow that it must follow. A depthwise convolution follows the rows outside of the image, which stages at
  /// the beginning have written unless a load has. A load, which is of the next image, follows all that use its map.
  void order_stages() {
    Stage ordered[kStages];
    int level_of[kStages] = {}, last = 0, count = 0;
    for (const bool loads : {false, true})
      for (int i = 0; i < l_.stages; i++) {
        const Stage& g = l_.stage[i];
        if ((g.kind == Kind::load) != loads) continue;
        int& level = level_of[i] = g.kind == Kind::depthwise && !is_loaded(g.in);
        for (int j = 0; j < (loads ? l_.stages : i); j++)
          if (l_.stage[j].kind != Kind::load && is_in_turn(l_.stage[j], g)) level = std::max(level, level_of[j] + 1);
        last = std::max(last, level);
      }
    const auto each_of = [&](int level, const auto& visit) {
      for (const bool loads : {true, false})
        for (int i = 0; i < l_.stages; i++)
          if (level_of[i] == level && (l_.stage[i].kind == Kind::load) == loads) visit(l_.stage[i]);
    };
    for (int level = 0; level <= last; level++) {
      each_of(level, [&](const Stage& g) { ordered[count++] = g; });
      if (count) ordered[count - 1].sync = level < last;
    }
    std::copy_n(ordered, count, l_.stage);
  }

  /// From the last stage to the first: a map has what those need that read it.
  void spread_reaches() {
    for (int i = l_.stages - 1; i >= 0; i--) {
      const Stage& g = l_.stage[i];
      if (g.kind == Kind::sum && !l_.map[g.in].reach.per) l_.map[g.in].reach = {1, 0, 0};
      if (g.kind == Kind::store && !l_.map[g.out].reach.per) l_.map[g.out].reach = {l_.map[g.in].reach.per, 0, 0};
      each_read(g, [&](const Read& r) {
        if (r.map == r.by || is_fixed_[r.map]) return;
        Reach& known = l_.map[r.map].reach;
        const Reach wanted = read_by(l_.map[r.by].reach, r.kernel, r.stride);
        known = {wanted.per, std::max(known.before, wanted.before),
                 known.per ? std::max(known.after, wanted.after) : wanted.after};
      });
    }
  }

  /// Rows of a ring, halos, rows and pitches, and where each map is.
  void place_maps() {
    const bool single = l_.step >= l_.band;
    int high[2][kMaps], low[2][kMaps];  // of each storage, at the first step and at a later one
    for (auto* list : {high[0], high[1]}) std::fill_n(list, kMaps, INT32_MIN);
    for (auto* list : {low[0], low[1]}) std::fill_n(list, kMaps, INT32_MAX);
    const auto begin = [&](const Map& m, int later) { return later ? m.reach.after : -m.reach.before; };
    for (int i = 0; i < l_.maps; i++) {
      const int s = storage_of_[i];
      if (s < 0) continue;
      Map& m = l_.map[i];
      const bool ahead = is_loaded(i) && !single;
      for (int later = 0; later < 2; later++) {
        high[later][s] = std::max(high[later][s], (ahead ? 2 : 1) * l_.step * m.reach.per + m.reach.after);
        low[later][s] = std::min(low[later][s], begin(m, later));
      }
      storage_[s].pixels_of_a_row = std::max(storage_[s].pixels_of_a_row, columns(m));
    }
    for (int i = 0; i < l_.stages; i++)
      each_read(l_.stage[i], [&](const Read& r) {
        const int s = storage_of_[r.map];
        for (int later = 0; later < 2; later++)
          low[later][s] = std::min(low[later][s], begin(l_.map[r.by], later) * r.stride - r.kernel / 2);
        storage_[s].halo = std::max(storage_[s].halo, r.kernel / 2);
        if (r.kernel > 1) l_.map[r.map].padded = 1;
        if (r.groups) {  // columns of the last group that are not there are read
          const int made = columns(l_.map[r.by]), more = l_.strips == 1 ? up(made, kGroup) - made : kGroup - 1;
          storage_[s].slack = std::max(storage_[s].slack, more * r.stride);
        }
      });
    for (int i = 0; i < l_.maps; i++) {
      l_.map[i].before = l_.map[i].reach.before;
      for (int j = 0; j < l_.maps; j++) {
        if (storage_of_[i] < 0 || storage_of_[i] != storage_of_[j]) continue;
        l_.map[i].padded |= l_.map[j].padded;  // lanes that a stencil reads may be those of several maps
        l_.map[i].before = std::max(l_.map[i].before, l_.map[j].reach.before);
      }
    }
    for (int i = 0; i < l_.stages; i++) {
      Stage& g = l_.stage[i];
      if (g.kind == Kind::load) g.pads = l_.map[g.out].padded, l_.map[g.out].padded = 0;
    }
    int64_t at = kOwnBytes;
    int64_t place[kMaps];
    for (int s = 0; s < storages_; s++) {
      Storage& t = storage_[s];
      place[s] = at;
      if (t.floats) {
        at += int64_t{4} * up(t.lanes, 4);
        continue;
      }
      t.rows = std::max({high[0][s] - low[0][s], single ? 0 : high[1][s] - low[1][s], 1});
      at += (int64_t{t.rows} * row_bytes(t) + int64_t{t.halo + t.slack} * pitch(t.lanes) * element_ + 15) / 16 * 16;
      if (at > (int64_t{1} << 30)) at = int64_t{1} << 30;
    }
    l_.shared = static_cast<int32_t>(at);
    for (int i = 0; i < l_.maps; i++) {
      if (storage_of_[i] < 0) continue;
      const Storage& t = storage_[storage_of_[i]];
      Map& m = l_.map[i];
      m.at = static_cast<int32_t>(std::min<int64_t>(place[storage_of_[i]], int64_t{1} << 30)),
      m.pitch = pitch(t.lanes) * element_;
      m.halo = t.halo, m.row = static_cast<int32_t>(std::min<int64_t>(row_bytes(t), int64_t{1} << 30)),
      m.rows = divisor(std::max(t.rows, 1));
      m.ring = m.rows.value * m.row;
    }
  }

  /// Columns of a map that a strip has at most.
  int columns(const Map& m) const { return std::min(m.width, l_.strip * m.reach.per + m.reach.before + m.reach.after); }

  /// Elements from pixel to pixel: an odd number of 16 bytes, so that eight pixels are in different banks.
  int pitch(int lanes) const {
    if (element_ == 4) return up(lanes, kDepth) + 4;
    return up(lanes, kOctet) + (up(lanes, kOctet) % kDepth ? 0 : kOctet);
  }

  /// Bytes of a row with the zeros beside it: as many that pixels of the next row are in the banks that come next.
  int64_t row_bytes(const Storage& t) const {
    const int64_t each = int64_t{pitch(t.lanes)} * element_;
    return t.pixels_of_a_row * each + (t.halo * each + 127) / 128 * 128;
  }

  Storage storage_[kMaps]{};
  int storage_of_[kMaps]{}, storages_ = 0;
  bool is_fixed_[kMaps]{};
};

}  // namespace ghost::cuda
