// A run of a chain of blocks as maps and stages of one launch, for a choice of sizes. Plain C++, no CUDA.
#pragma once
#include <cmath>
#include <limits>

#include "activations.h"
#include "cost.h"
#include "layout.h"

namespace ghost::cuda {

/// What a launch computes of blocks that follow each other, each of which reads what the one before makes: from one
/// place to another. A place is where a block begins or ends, or the expanded map within a bottleneck.
struct Run {
  int32_t first, last;                 // blocks
  int32_t begins_within, ends_within;  // of the first block only what follows the expanded map; of the last only that
  int32_t excites;                     // only the excitation of the first block, of several images

  bool is_one_block() const { return first == last; }
  bool is_whole_block() const { return is_one_block() && !begins_within && !ends_within && !excites; }
};

/// What a launch has to do beside its blocks.
struct Extras {
  bool scale, residual, squeeze;  // of a single Ghost module: the input is multiplied, a map is added, means are wanted
  bool drops_map;                 // with `squeeze`: nobody reads the map itself
  bool excite;                    // an excitation is computed by the launch that multiplies by it
  int sums;                       // parts of an image whose sums there are
};

/// Images that are the pixels of one map, where a launch has no other pixels: as many as there is memory for.
constexpr int kImagesOfExcitation = 16, kImagesOfLinear = 32;  // in half precision; half of them in float32
inline int images_at_once(const Block& last, const Run& run, int element) {
  return (run.excites ? kImagesOfExcitation : last.linear ? kImagesOfLinear : element / 2) * 2 / element;
}
inline int height_of(const Block& last, const Run& run) { return run.excites || last.linear ? 1 : out_height(last); }
inline int width_of(const Block& last, const Run& run, int element) {
  return run.excites || last.linear ? images_at_once(last, run, element) : out_width(last);
}

class Lowering : Layout {
 public:
  Lowering(const Block* blocks, const Run& run, int element, const Choice& choice, const Extras& extras)
      : Layout(element, choice, height_of(blocks[run.last], run), width_of(blocks[run.last], run, element)),
        blocks_(blocks),
        run_(run),
        extras_(extras) {
    const Block& last = blocks[run.last];
    l_.images_at_once = images_at_once(last, run, element);
    if (run.excites)
      excite_images(last);
    else if (last.linear)
      linear(last);
    else
      blocks_in_turn();
    lay_out();
    choose_tiles();
  }

  /// Null where the run has more maps or stages than a launch.
  Launch* launch() { return fits_ ? &l_ : nullptr; }

 private:
  void blocks_in_turn() {
    int x = kNoMap;  // of the block; none where that is in global memory
    for (int i = run_.first; i <= run_.last; i++) {
      const Block& b = blocks_[i];
      const bool begins_within = i == run_.first && run_.begins_within, is_last = i == run_.last;
      int input;
      if (begins_within) {
        input = add(out_height(b), out_width(b), lanes(b));
        load(input, 0, lanes(b));
        if (b.hidden)
          scale(input, lanes(b), extras_.excite ? excitation(b, 1, extras_.sums, true, lanes(b)) : kNoMap, lanes(b));
      } else {
        const bool loads = x == kNoMap;
        if (loads) {
          x = add(b.height, b.width, b.channels);
          load(x, 0, b.channels);
          if (b.window) l_.window = window_of(b);
        }
        input = b.primary ? expanded(b, x, is_last && run_.ends_within) : x;
        if (extras_.scale) scale(x, b.channels, kNoMap, b.channels);
        if (is_last && run_.ends_within) return expand(b, input);
        if (b.hidden) {
          sum(input, 0, lanes(b), lanes(b), 0, 0);
          scale(input, lanes(b), excitation(b, 1, 1, false, lanes(b)), lanes(b));
        }
        if (loads && b.shortcut < 0) x = kNoMap;
      }
      x = project(b, i, x, input, begins_within);
    }
  }

  static Window window_of(const Block& b) {
    Window w{};
    w.size = b.window, w.stride = b.window_stride, w.padding = b.window_padding;
    w.channels = b.image_channels, w.height = b.image_height, w.width = b.image_width;
    w.taps = divisor(b.window * b.window), w.columns = divisor(b.window);
    return w;
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
    g.depth = cdiv(depth, kDepth), g.tail = element_ == 2 && up(depth, kOctet) % kDepth;
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

  /// `lanes` from `lane` on to as many channels of the output, or of a map that the next block reads.
  Stage& copy(Kind kind, int in, int out, int lane, int lanes, int channel, int channels, int tensor, int step = 0) {
    Stage& g = stage(kind, in, out, lanes);
    g.in_lane = lane, g.channel = channel, g.channels = channels, g.tensor = tensor;
    g.primary = lanes, g.multiplier = divisor(1), g.lane_step = step;
    g.keep = kind == Kind::store && extras_.squeeze;
    return g;
  }
  int output() { return add_fixed(l_.height, l_.width, {1, 0, 0}, kNoStorage); }

  void sum(int in, int lane, int lanes, int all, int first, int step) {
    const int pairs = lanes / 2, groups = std::max(choice_.threads / pairs, 1);
    const int out = add_fixed(1, 1, {0, 0, 1}, add_storage(lanes + 2 * pairs * groups, true));
    Stage& g = stage(Kind::sum, in, out, lanes);
    g.in_lane = lane, g.count = groups, g.channels = all, g.channel = first, g.lane_step = step;
    g.items = divisor(pairs);
  }

  /// Means of `lanes` lanes over the maps that a block has made, from the sums of `parts`.
  void mean(const Block& of, int out, int lanes, int parts, bool once) {
    Stage& g = stage(Kind::mean, kNoMap, out, lanes);
    g.items = divisor(lanes / 4), g.count = parts, g.once = once;
    g.low = 1.f / (static_cast<float>(out_height(of)) * static_cast<float>(out_width(of)));
  }

  /// From the sums of `parts` to a factor for each lane, or for a chunk of them, as pixels; returns their map.
  int excitation(const Block& b, int pixels, int parts, bool once, int chunk) {
    const int all = lanes(b), hidden = lanes_of(b.hidden);
    const Reach reach = pixels == 1 ? Reach{0, 0, 1} : Reach{1, 0, 0};
    const auto vector = [&](int lanes) { return add_fixed(1, pixels, reach, add_storage(lanes)); };
    const int means = vector(all), units = vector(hidden), factors = vector(chunk);
    mean(b, means, all, parts, once);
    l_.stage[l_.stages - 1].tensor = run_.is_whole_block();
    product(means, units, all, b.reduce, hidden, hidden, 0, once);
    product(units, factors, b.hidden, b.expand, chunk, all, chunk < all ? chunk : 0, once);
    const Act gate = act_of_gate(b.gate);
    if (gate != act_none) {
      const Stage made = l_.stage[l_.stages - 1];
      activate(made, gate, -1);
    }
    return factors;
  }

  /// A chunk is some of the factors; the hidden layer is computed for each.
  void excite_images(const Block& b) {
    const int all = lanes(b), chunk = all / l_.chunks;
    const int factors = excitation(b, l_.images_at_once, extras_.sums, false, chunk);
    copy(Kind::store, factors, output(), 0, chunk, 0, all, kNoMap, chunk < all ? chunk : 0);
  }

  /// A linear layer, the images as pixels; a chunk is some of its outputs.
  void linear(const Block& b) {
    const int all = lanes_of(b.primary2), chunk = all / l_.chunks, step = l_.chunks > 1 ? chunk : 0;
    const int x = add_fixed(1, l_.width, {1, 0, 0}, add_storage(lanes_of(b.channels)));
    if (b.linear == kOfMeans)
      mean(blocks_[run_.first - 1], x, lanes_of(b.channels), extras_.sums, false);
    else
      load(x, 0, b.channels);
    const int y = add(1, l_.width, chunk);
    product(x, y, b.channels, b.second, chunk, all, step);
    copy(Kind::store, y, output(), 0, std::min(chunk, b.kept2), 0, b.kept2, kNoMap, step);
  }

  void scale(int map, int lanes, int factors, int channels) {
    Stage& g = stage(Kind::scale, factors, map, lanes);
    g.channels = channels;
  }

  /// A Ghost module: a product, and beside its lanes those of a cheap operation, or with multiplier 0 in their place.
  /// Of `all` outputs of the product a chunk takes the next `chunk`.
  int module(int x, int height, int width, int depth, const Conv& primary, const Conv& cheap, int kernel,
             int multiplier, int chunk, int all, int step) {
    const int storage = add_storage(chunk * (1 + multiplier));
    const int first = add_map(height, width, storage);
    product(x, first, depth, primary, chunk, all, step);
    if (!multiplier) {
      if (cheap.weight < 0) return first;
      const int replaced = add(height, width, chunk);
      depthwise(first, 0, replaced, 0, chunk, cheap, kernel, 1, 0, step);
      return replaced;
    }
    const int both = add_map(height, width, storage);
    for (int q = 0; q < multiplier; q++)
      depthwise(first, 0, both, chunk * (1 + q), chunk, cheap, kernel, 1, all * q, step);
    return both;
  }

  /// The first Ghost module, if there is one, and what follows it; returns the map of all lanes, already with the
  /// depthwise convolution between if there is one. In chunks where it is the last that a launch makes.
  int expanded(const Block& b, int x, bool in_chunks) {
    const int group = lanes_of(b.primary), groups = 1 + b.multiplier;
    const int chunk = in_chunks ? group / l_.chunks : group, step = chunk < group ? chunk : 0;
    const int all = is_separable(b) ? x
                                    : module(x, b.height, b.width, b.channels, b.first, b.cheap, b.cheap_kernel,
                                             b.multiplier, chunk, group, step);
    if (!b.kernel) return all;
    const int last = add(out_height(b), out_width(b), chunk * groups);
    if (!step) {
      depthwise(all, 0, last, 0, chunk * groups, b.depthwise, b.kernel, b.stride, 0, 0);
    } else {
      for (int q = 0; q < groups; q++)
        depthwise(all, chunk * q, last, chunk * q, chunk, b.depthwise, b.kernel, b.stride, group * q, step);
    }
    return last;
  }

  /// Writes the expanded map, and with an excitation its sums.
  void expand(const Block& b, int all) {
    const int group = lanes_of(b.primary), groups = 1 + b.multiplier, chunk = group / l_.chunks, out = output();
    for (int q = 0; q < (l_.chunks == 1 ? 1 : groups); q++) {
      const int count = l_.chunks == 1 ? chunk * groups : chunk, step = l_.chunks == 1 ? 0 : chunk;
      copy(Kind::store, all, out, chunk * q, count, group * q, group * groups, kNoMap, step);
      if (b.hidden) sum(all, chunk * q, count, group * groups, group * q, step);
    }
  }

  /// The second Ghost module and the shortcut of block `index`; returns the map of its channels where that is not the
  /// last one. `x`: its input, kNoMap where that is in global memory only.
  int project(const Block& b, int index, int x, int input, bool begins_within) {
    const bool is_last = index == run_.last;
    const int height = out_height(b), width = out_width(b), all = lanes_of(b.primary2);
    const int group = is_last ? all / l_.chunks : all, step = group < all ? group : 0;
    const int both = module(input, height, width, b.primary ? lanes(b) : b.channels, b.second, b.cheap2,
                            b.cheap_kernel2, b.multiplier2, group, all, step);
    const int residual = shortcut(b, x, begins_within), kept = step ? group : b.kept2;
    const auto ghost = [&](Kind kind, int out) {
      Stage& g = copy(kind, both, out, 0, kept, 0, b.kept2, residual, step);
      g.primary = std::min(b.primary2, kept), g.group = group, g.multiplier = divisor(std::max(b.multiplier2, 1));
    };
    if (is_last) {
      if (!extras_.drops_map) ghost(Kind::store, output());
      const int made = group * (1 + b.multiplier2);
      if (extras_.squeeze) sum(both, 0, made, all * (1 + b.multiplier2), 0, step);
      return kNoMap;
    }
    const int joined = add(height, width, b.kept2);
    ghost(Kind::join, joined);
    if (run_.ends_within && index + 1 == run_.last && blocks_[run_.last].shortcut >= 0) {  // read by a later launch
      copy(Kind::store, joined, add_map(height, width, kNoStorage), 0, b.kept2, 0, b.kept2, kNoMap).between = 1;
    }
    return joined;
  }

  /// The map, or kResidual or kNoMap, that the output is added to.
  int shortcut(const Block& b, int x, bool begins_within) {
    if (b.shortcut < 0) return extras_.residual ? kResidual : kNoMap;
    if (begins_within) {
      x = add(b.height, b.width, b.channels);
      load(x, 1, b.channels);
    }
    if (b.shortcut == 0) return x;
    const int between = add(out_height(b), out_width(b), b.channels), last = add(out_height(b), out_width(b), b.kept2);
    depthwise(x, 0, between, 0, b.channels, b.shortcut_depthwise, b.shortcut, b.stride, 0, 0);
    product(between, last, b.channels, b.shortcut_pointwise, b.kept2, b.kept2, 0);
    return last;
  }

  /// The kind of tile of each product that takes the least time, and the rows of one of a depthwise convolution.
  void choose_tiles() {
    for (int i = 0; i < l_.stages; i++) {
      Stage& g = l_.stage[i];
      if (g.kind == Kind::depthwise) choose_rows(g);
      if (g.kind != Kind::product) continue;
      double least = std::numeric_limits<double>::infinity();
      int best = kWideTile;
      for (const int kind : {kWideTile, kTallTile, kSmallTile, kAheadTile}) {
        if (!has_tile(kind, element_) || (kind == kAheadTile && g.depth <= kAhead + 1)) continue;
        g.kernel = kind, g.items = divisor(cdiv(g.lanes / kColumns, columns_of_tile(kind)));
        const double time = cycles(cost(l_, g, element_));
        if (time < least) best = kind, least = time;
      }
      g.kernel = best, g.items = divisor(cdiv(g.lanes / kColumns, columns_of_tile(best)));
    }
  }

  void choose_rows(Stage& g) {
    const bool is_high = extent_of(l_, l_.map[g.out]).rows > kLowTile && has_rows(kHighTile, g.kernel);
    g.rows = is_high ? kHighTile : kLowTile;
  }

  const Block* const blocks_;
  const Run run_;
  const Extras extras_;
};

}  // namespace ghost::cuda
