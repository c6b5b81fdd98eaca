// A block as maps and stages of one launch, for a choice of sizes. Plain C++, no CUDA.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>

#include "activations.h"
#include "cost.h"

namespace ghost::cuda {

/// What a launch computes of a block.
enum class Piece : int32_t {
  whole,    // all of it
  expand,   // the expanded map, with the sums of its lanes where there is an excitation
  excite,   // the excitation of images from these sums
  project,  // the second Ghost module and the shortcut, from the expanded map; or a single Ghost module
};

/// The sizes that a planner chooses.
struct Choice {
  int band, strip, step, chunks, threads;
};

/// What a call of a single Ghost module has, and whether an excitation is computed by the launch that multiplies by it.
struct Extras {
  bool scale, residual, squeeze, excite;
  int sums;  // parts of an image whose sums there are
};

constexpr int kImagesOfExcitation = 16;  // rows of a product's tile

class Lowering {
 public:
  Lowering(const Block& block, int element, Piece piece, const Choice& choice, const Extras& extras)
      : b_(block), element_(element), choice_(choice), extras_(extras) {
    const bool one_by_one = piece == Piece::excite;
    l_.height = one_by_one ? 1 : out_height(b_);
    l_.width = one_by_one ? kImagesOfExcitation : out_width(b_);
    l_.threads = choice.threads, l_.warps = divisor(cdiv(choice.threads, 32)), l_.band = choice.band,
    l_.strip = choice.strip, l_.step = choice.step;
    l_.bands = cdiv(l_.height, l_.band), l_.strips = cdiv(l_.width, l_.strip), l_.chunks = choice.chunks;
    l_.images_at_once = one_by_one ? kImagesOfExcitation : 1;
    l_.grid = 1, l_.inverse_pixels = 1.f / (static_cast<float>(out_height(b_)) * static_cast<float>(out_width(b_)));
    if (piece == Piece::excite)
      excite_images();
    else if (piece == Piece::expand)
      expand();
    else
      project(piece == Piece::whole);
    lay_out();
    choose_tiles();
  }

  /// None where the block has more stages than a launch.
  std::optional<Launch> launch() const { return fits_ ? std::optional(l_) : std::nullopt; }

 private:
  struct Storage {
    int lanes, pixels_of_a_row, rows, halo, slack;
    bool floats;
  };

  int add_map(int height, int width, Reach reach, int storage) {
    Map& m = l_.map[l_.maps];
    m = {}, m.height = height, m.width = width, m.reach = reach;
    storage_of_[l_.maps] = storage;
    return l_.maps++;
  }
  int add_storage(int lanes, bool floats = false) {
    storage_[storages_] = {lanes, 0, 0, 0, 0, floats};
    return storages_++;
  }
  int add(int height, int width, Reach reach, int lanes) { return add_map(height, width, reach, add_storage(lanes)); }

  Stage& stage(Kind kind, int in, int out, int lanes) {
    fits_ &= l_.stages < kStages;
    Stage& g = l_.stage[fits_ ? l_.stages++ : kStages - 1];
    g = {}, g.kind = kind, g.in = in, g.out = out, g.lanes = lanes, g.kernel = g.stride = 1, g.tensor = kNoMap,
    g.slopes = -1, g.items = divisor(std::max(lanes / 2, 1)), g.unit = element_;
    g.low = -kNoBound, g.high = kNoBound;
    return g;
  }

  /// Bias, bounds and, where that is more than bounds, a stage for the activation.
  void finish(Stage& g, const Conv& conv, int offset, int lane_step, bool once = false) {
    g.bias = conv.bias + offset, g.lane_step = lane_step, g.once = once;
    const int act = conv.act;
    if (act == act_relu || act == act_relu6 || act == act_clamp) {
      g.low = 0.f;
      if (act != act_relu) g.high = act == act_relu6 ? 6.f : 1.f;
    } else if (act != act_none) {
      const Stage made = g;
      activate(made, act, conv.slopes < 0 ? -1 : conv.slopes + offset);
    }
  }
  void activate(const Stage& made, int act, int slopes) {
    Stage& a = stage(Kind::activate, made.out, made.out, made.lanes);
    a.out_lane = made.out_lane, a.act = act, a.slopes = slopes, a.lane_step = made.lane_step, a.once = made.once;
  }

  void load(int out, int tensor, int channels) {
    Stage& g = stage(Kind::load, kNoMap, out, channels);
    g.tensor = tensor, g.channels = channels;
  }

  /// `lanes` outputs of a weight that has `all`; a chunk takes the next ones.
  void product(int in, int out, int depth, const Conv& conv, int lanes, int all, int step, bool once = false) {
    Stage& g = stage(Kind::product, in, out, lanes_of(lanes));
    g.depth = cdiv(depth, kDepth);
    g.weight = conv.weight, g.apart = lanes_of(all) / kColumns * kWeightTile;
    g.weight_step = step / kColumns * kWeightTile;
    finish(g, conv, 0, step, once);
  }

  /// A depthwise convolution of `lanes` lanes; their parameters begin at lane `offset`.
  void depthwise(int in, int in_lane, int out, int out_lane, int lanes, const Conv& conv, int kernel, int stride,
                 int offset, int step) {
    Stage& g = stage(Kind::depthwise, in, out, up(lanes, 2));
    g.items = divisor(g.lanes / 2), g.in_lane = in_lane, g.out_lane = out_lane, g.kernel = kernel, g.stride = stride;
    g.weight = conv.weight, g.parameter = offset;
    finish(g, conv, offset, step);
  }

  /// `lanes` from `lane` on to as many channels of the output.
  Stage& store(int in, int out, int lane, int lanes, int channel, int channels, int tensor, int step = 0) {
    Stage& g = stage(Kind::store, in, out, lanes);
    g.in_lane = lane, g.channel = channel, g.channels = channels, g.tensor = tensor;
    g.primary = lanes, g.multiplier = divisor(1), g.keep = extras_.squeeze, g.lane_step = step;
    return g;
  }

  void sum(int in, int lane, int lanes, int all, int first, int step) {
    const int pairs = lanes / 2, groups = std::max(choice_.threads / pairs, 1);
    const int out = add_map(1, 1, {0, 0, 1}, add_storage(lanes + 2 * pairs * groups, true));
    Stage& g = stage(Kind::sum, in, out, lanes);
    g.in_lane = lane, g.count = groups, g.channels = all, g.channel = first, g.lane_step = step;
    g.items = divisor(pairs);
  }

  /// From the sums of `parts` to a factor for each lane, as pixels; returns their map.
  int excitation(int pixels, int parts, bool once) {
    const int all = lanes(b_), hidden = lanes_of(b_.hidden);
    const Reach reach = pixels == 1 ? Reach{0, 0, 1} : Reach{1, 0, 0};
    const int means = add(1, pixels, reach, all), units = add(1, pixels, reach, hidden),
              factors = add(1, pixels, reach, all);
    Stage& g = stage(Kind::mean, kNoMap, means, all);
    g.items = divisor(all), g.count = parts, g.once = once;
    product(means, units, all, b_.reduce, hidden, hidden, 0, once);
    product(units, factors, b_.hidden, b_.expand, all, all, 0, once);
    const Act gate = act_of_gate(b_.gate);
    if (gate != act_none) {
      const Stage made = l_.stage[l_.stages - 1];
      activate(made, gate, -1);
    }
    return factors;
  }

  void excite_images() {
    const int factors = excitation(kImagesOfExcitation, extras_.sums, false), all = lanes(b_);
    const int out = add_map(1, kImagesOfExcitation, {1, 0, 0}, -1);
    store(factors, out, 0, all, 0, all, kNoMap);
  }

  void scale(int map, int lanes, int factors, int channels) {
    Stage& g = stage(Kind::scale, factors, map, lanes);
    g.channels = channels;
  }

  /// The first Ghost module and what follows it, up to rows of `reach`; returns the map of all lanes, already with the
  /// depthwise convolution between if there is one. `chunk`: primary lanes of a part.
  int expanded(Reach reach, int x, int chunk) {
    const int group = lanes_of(b_.primary), groups = 1 + b_.multiplier, step = l_.chunks > 1 ? chunk : 0;
    const Reach inner = b_.kernel ? read_by(reach, b_.kernel, b_.stride) : reach;
    const int storage = add_storage(chunk * groups);
    const Reach primary = b_.multiplier ? read_by(inner, b_.cheap_kernel, 1) : inner;
    const int first = add_map(b_.height, b_.width, primary, storage);
    const int all = b_.multiplier ? add_map(b_.height, b_.width, inner, storage) : first;
    l_.map[x].reach = primary;
    product(x, first, b_.channels, b_.first, chunk, group, step);
    for (int q = 0; q < b_.multiplier; q++)
      depthwise(first, 0, all, chunk * (1 + q), chunk, b_.cheap, b_.cheap_kernel, 1, group * q, step);
    if (!b_.kernel) return all;
    const int last = add(out_height(b_), out_width(b_), reach, chunk * groups);
    if (l_.chunks == 1) {
      depthwise(all, 0, last, 0, chunk * groups, b_.depthwise, b_.kernel, b_.stride, 0, 0);
    } else {
      for (int q = 0; q < groups; q++)
        depthwise(all, chunk * q, last, chunk * q, chunk, b_.depthwise, b_.kernel, b_.stride, group * q, step);
    }
    return last;
  }

  int map_of_x() { return add(b_.height, b_.width, {1, 0, 0}, b_.channels); }

  void expand() {
    const int group = lanes_of(b_.primary), groups = 1 + b_.multiplier, chunk = group / l_.chunks, x = map_of_x();
    load(x, 0, b_.channels);
    const int all = expanded({1, 0, 0}, x, chunk), out = add_map(l_.height, l_.width, {1, 0, 0}, -1);
    for (int q = 0; q < (l_.chunks == 1 ? 1 : groups); q++) {
      const int count = l_.chunks == 1 ? chunk * groups : chunk;
      store(all, out, chunk * q, count, group * q, group * groups, kNoMap, l_.chunks == 1 ? 0 : chunk);
      if (b_.hidden) sum(all, chunk * q, count, group * groups, group * q, l_.chunks == 1 ? 0 : chunk);
    }
  }

  void project(bool whole) {
    const int height = out_height(b_), width = out_width(b_), group = lanes_of(b_.primary2);
    const bool alone = !b_.primary;
    const Reach out_reach{1, 0, 0}, inner = b_.multiplier2 ? read_by(out_reach, b_.cheap_kernel2, 1) : out_reach;
    int x = kNoMap, input;
    if (whole || alone) {
      x = map_of_x();
      load(x, 0, b_.channels);
      l_.map[x].reach = inner;
    }
    if (whole) {
      input = expanded(inner, x, lanes_of(b_.primary));
      if (b_.hidden) {
        sum(input, 0, lanes(b_), lanes(b_), 0, 0);
        scale(input, lanes(b_), excitation(1, 1, false), lanes(b_));
      }
    } else if (alone) {
      input = x;
      if (extras_.scale) scale(x, b_.channels, kNoMap, b_.channels);
    } else {
      input = add(height, width, inner, lanes(b_));
      load(input, 0, lanes(b_));
      if (b_.hidden) scale(input, lanes(b_), extras_.excite ? excitation(1, extras_.sums, true) : kNoMap, lanes(b_));
    }
    const int storage = add_storage(group * (1 + b_.multiplier2));
    const int second = add_map(height, width, inner, storage);
    const int both = b_.multiplier2 ? add_map(height, width, out_reach, storage) : second;
    product(input, second, alone ? b_.channels : lanes(b_), b_.second, group, group, 0);
    for (int q = 0; q < b_.multiplier2; q++)
      depthwise(second, 0, both, group * (1 + q), group, b_.cheap2, b_.cheap_kernel2, 1, group * q, 0);
    const int out = add_map(height, width, out_reach, -1), residual = shortcut(x, whole);
    Stage& g = store(both, out, 0, b_.kept2, 0, b_.kept2, residual);
    g.primary = b_.primary2, g.group = group, g.multiplier = divisor(std::max(b_.multiplier2, 1));
    if (extras_.squeeze) sum(both, 0, group * (1 + b_.multiplier2), group * (1 + b_.multiplier2), 0, 0);
  }

  /// The map, or kResidual or kNoMap, that the output is added to.
  int shortcut(int x, bool whole) {
    if (b_.shortcut <= 0) return b_.shortcut == 0 || extras_.residual ? kResidual : kNoMap;
    const Reach out{1, 0, 0}, read = read_by(out, b_.shortcut, b_.stride);
    if (!whole) {
      x = map_of_x();
      load(x, 1, b_.channels);
      l_.map[x].reach = read;
    } else {
      Reach& r = l_.map[x].reach;
      r.before = std::max(r.before, read.before), r.after = std::max(r.after, read.after);
    }
    const int between = add(out_height(b_), out_width(b_), out, b_.channels),
              last = add(out_height(b_), out_width(b_), out, b_.kept2);
    depthwise(x, 0, between, 0, b_.channels, b_.shortcut_depthwise, b_.shortcut, b_.stride, 0, 0);
    product(between, last, b_.channels, b_.shortcut_pointwise, b_.kept2, b_.kept2, 0);
    return last;
  }

  /// How far a stage reads: the map of its result, its kernel and stride, and whether it takes groups of columns.
  struct Read {
    int map, by, kernel, stride;
    bool groups;
  };
  template <class Visit>
  void each_read(const Visit& visit) const {
    for (int i = 0; i < l_.stages; i++) {
      const Stage& g = l_.stage[i];
      if (g.kind == Kind::depthwise) visit(Read{g.in, g.out, g.kernel, g.stride, true});
      if (g.kind == Kind::product || g.kind == Kind::store) visit(Read{g.in, g.out, 1, 1, false});
      if (g.kind == Kind::store && g.tensor >= 0) visit(Read{g.tensor, g.out, 1, 1, false});
      if (g.kind == Kind::activate || g.kind == Kind::scale) visit(Read{g.out, g.out, 1, 1, false});
      if (g.kind == Kind::sum) visit(Read{g.in, g.in, 1, 1, false});
    }
  }

  /// Rows of a ring, halos, rows and pitches, and where each map is.
  void lay_out() {
    const bool single = l_.step >= l_.band;
    int high[2][kMaps], low[2][kMaps];  // of each storage, at the first step and at a later one
    for (auto* list : {high[0], high[1]}) std::fill_n(list, kMaps, INT32_MIN);
    for (auto* list : {low[0], low[1]}) std::fill_n(list, kMaps, INT32_MAX);
    const auto begin = [&](const Map& m, int later) { return later ? m.reach.after : -m.reach.before; };
    for (int i = 0; i < l_.maps; i++) {
      const int s = storage_of_[i];
      if (s < 0) continue;
      Map& m = l_.map[i];
      bool ahead = false;
      for (int j = 0; j < l_.stages; j++) ahead |= l_.stage[j].kind == Kind::load && l_.stage[j].out == i && !single;
      for (int later = 0; later < 2; later++) {
        high[later][s] = std::max(high[later][s], (ahead ? 2 : 1) * l_.step * m.reach.per + m.reach.after);
        low[later][s] = std::min(low[later][s], begin(m, later));
      }
      storage_[s].pixels_of_a_row = std::max(storage_[s].pixels_of_a_row, columns(m));
    }
    each_read([&](const Read& r) {
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
      const int64_t pixels = int64_t{t.rows} * (t.pixels_of_a_row + t.halo) + t.halo + t.slack;
      at += (pixels * pitch(t.lanes) * element_ + 15) / 16 * 16;
      if (at > (int64_t{1} << 30)) at = int64_t{1} << 30;
    }
    l_.shared = static_cast<int32_t>(at);
    for (int i = 0; i < l_.maps; i++) {
      if (storage_of_[i] < 0) continue;
      const Storage& t = storage_[storage_of_[i]];
      Map& m = l_.map[i];
      m.at = static_cast<int32_t>(std::min<int64_t>(place[storage_of_[i]], int64_t{1} << 30)),
      m.pitch = pitch(t.lanes) * element_;
      m.halo = t.halo, m.row = (t.pixels_of_a_row + t.halo) * m.pitch, m.rows = divisor(std::max(t.rows, 1));
      m.ring = m.rows.value * m.row;
    }
  }

  /// Columns of a map that a strip has at most.
  int columns(const Map& m) const { return std::min(m.width, l_.strip * m.reach.per + m.reach.before + m.reach.after); }

  /// The kind of tile of each product that takes the least time.
  void choose_tiles() {
    for (int i = 0; i < l_.stages; i++) {
      Stage& g = l_.stage[i];
      if (g.kind != Kind::product) continue;
      double least = 0;
      int best = 0;
      for (const int kind : {kWideTile, kTallTile, kSmallTile}) {
        g.kernel = kind, g.items = divisor(cdiv(g.lanes / kColumns, columns_of_tile(kind)));
        const double time = cycles(cost(l_, g, element_));
        if (!best || time < least) best = kind, least = time;
      }
      g.kernel = best, g.items = divisor(cdiv(g.lanes / kColumns, columns_of_tile(best)));
    }
  }

  /// Elements from pixel to pixel: 16 bytes more than a multiple of 32, so that eight pixels are in different banks.
  int pitch(int lanes) const { return up(lanes, kDepth) + 16 / element_; }

  const Block& b_;
  const int element_;
  const Choice choice_;
  const Extras extras_;
  Launch l_{};
  Storage storage_[kMaps]{};
  int storage_of_[kMaps]{}, storages_ = 0;
  bool fits_ = true;
};

}  // namespace ghost::cuda
