// Validates a block's numbers before any kernel reads by them.
#pragma once
#include <initializer_list>

#include "chain.h"

namespace ghost::cuda {

/// Null where a block is valid whose parameters are in buffers of these lengths, else what is wrong with it. `half`:
/// whether maps are in half precision, where taps are among the matrices.
inline const char* validate(const Block& b, int64_t matrices, int64_t vectors, bool half) {
  constexpr int kMost = 1 << 16;
  const auto within = [](int n, int low, int high) { return low <= n && n <= high; };
  const auto odd = [&](int kernel) { return within(kernel, 1, 7) && kernel % 2 == 1; };
  if (!within(b.height, 1, kMost) || !within(b.width, 1, kMost))
    return "a map of no pixels, or of more than 65536 a side";
  for (int n : {b.channels, b.primary2, b.kept2})
    if (!within(n, 1, kMost)) return "channels";
  const int made2 = b.kept2 - b.primary2;
  if (!within(b.multiplier2, 0, 64) || !within(made2, 0, b.primary2 * b.multiplier2) ||
      (b.multiplier2 > 0) != (made2 > 0))
    return "the channels kept of the second module";
  if (!odd(b.cheap_kernel2) || !within(b.stride, 1, 64)) return "a kernel or stride";
  if (b.primary) {
    if (!within(b.primary, 1, kMost) || !within(b.multiplier, 0, 7)) return "the channels of the first module";
    if (!odd(b.cheap_kernel) || (b.kernel && !odd(b.kernel)) || (b.shortcut > 0 && !odd(b.shortcut))) return "a kernel";
    if (!within(b.hidden, 0, kMost) || !within(b.gate, 0, kGates - 1) || b.shortcut < -1)
      return "an excitation or shortcut";
    if (is_separable(b) &&
        (b.primary != b.channels || b.multiplier || b.cheap.weight >= 0 || !b.kernel || b.shortcut > 0))
      return "a first convolution without a weight";
    if (!b.kernel && b.stride > 1) return "a stride without a convolution that has it";
    if (b.shortcut == 0 && (b.stride > 1 || b.channels != b.kept2)) return "a shortcut of another shape";
  } else if (b.stride != 1 || b.kernel || b.hidden || b.shortcut != -1) {
    return "a module alone that has more than a module";
  }
  if (b.window) {
    if (b.primary || b.linear) return "a window in a block that is not a convolution";
    if (!within(b.window, 1, kMostWindow) || !within(b.window_stride, 1, 64) ||
        !within(b.window_padding, 0, kMostWindow) || !within(b.image_channels, 1, kMost) ||
        !within(b.image_height, 1, kMost) || !within(b.image_width, 1, kMost))
      return "an image or its windows";
    const auto made = [&](int side) { return (side + 2 * b.window_padding - b.window) / b.window_stride + 1; };
    if (int64_t{b.image_channels} * b.window * b.window != b.channels || made(b.image_height) != b.height ||
        made(b.image_width) != b.width || std::min(b.image_height, b.image_width) + 2 * b.window_padding < b.window)
      return "windows that do not make this map";
  }
  if (!within(b.linear, kNotLinear, kOfFeatures) ||
      (b.linear && (b.primary || b.multiplier2 || b.height != 1 || b.width != 1)))
    return "a linear layer that is none";
  struct Piece {
    const Conv& conv;
    bool there, is_matrix;
    int64_t weight, channels;
  };
  const int all = b.primary ? lanes(b) : 0, depth = b.primary ? all : b.channels;
  const auto matrix = [](int64_t out, int64_t in) {
    return (out + 7) / 8 * 8 * ((in + 15) / 16 * 16) + kSpareTiles * kWeightTile;
  };
  const auto taps = [&](int kernel, int lanes) {
    return half ? int64_t{taps_of_lane(kernel)} * lanes_of(lanes) : taps_of(kernel, lanes);
  };
  const int first = lanes_of(b.primary), wide = lanes_of(b.primary2), hidden = lanes_of(b.hidden);
  const int made = most(b.multiplier, 1), times2 = most(b.multiplier2, 1);
  for (const Piece& p : std::initializer_list<Piece>{
           {b.first, b.primary > 0 && !is_separable(b), true, matrix(first, b.channels), first},
           {b.cheap, b.multiplier > 0 || b.cheap.weight >= 0, half, taps(b.cheap_kernel, first * made), first * made},
           {b.depthwise, b.kernel > 0, half, taps(b.kernel, all), all},
           {b.reduce, b.hidden > 0, true, matrix(hidden, all), hidden},
           {b.expand, b.hidden > 0, true, matrix(all, hidden), all},
           {b.second, true, true, matrix(wide, depth), wide},
           {b.cheap2, made2 > 0 || b.cheap2.weight >= 0, half, taps(b.cheap_kernel2, wide * times2), wide * times2},
           {b.shortcut_depthwise, b.shortcut > 0, half, taps(b.shortcut, up(b.channels, 2)), up(b.channels, 2)},
           {b.shortcut_pointwise, b.shortcut > 0, true, matrix(b.kept2, b.channels), lanes_of(b.kept2)}}) {
    if (!p.there) continue;
    const auto fits = [&](int64_t at, int64_t count, int64_t all, int to) {
      return at >= 0 && at % to == 0 && at + count <= all;
    };
    if (!fits(p.conv.weight, p.weight, p.is_matrix ? matrices : vectors, p.is_matrix ? kWeightTile : 2) ||
        !fits(p.conv.bias, p.channels + kSpareTiles * kColumns, vectors, 2) || !within(p.conv.act, 0, kActs - 1) ||
        (p.conv.slopes != -1 && !fits(p.conv.slopes, p.channels, vectors, 2)))
      return "parameters outside of their buffers";
    if (slope_kind(p.conv.act) != kNoSlope && p.conv.slopes < 0) return "an activation without its slopes";
  }
  return nullptr;
}

/// The same for blocks that follow each other.
inline const char* validate(const std::vector<Block>& blocks, int64_t matrices, int64_t vectors, bool half) {
  if (blocks.empty() || blocks.size() > kMostBlocks) return "no block, or more than 64";
  for (size_t i = 0; i < blocks.size(); i++) {
    const Block& b = blocks[i];
    if (const char* what = validate(b, matrices, vectors, half)) return what;
    if (i == 0) {
      if (b.linear) return "a linear layer without a block before it";
      continue;
    }
    const Block& before = blocks[i - 1];
    if (b.window) return "windows of a map that is not the image";
    if (b.channels != before.kept2) return "a block that does not have the channels of the one before";
    if (!b.linear && (b.height != out_height(before) || b.width != out_width(before) || before.linear))
      return "a block that does not have the map of the one before";
    if (b.linear == kOfMeans && (before.linear || before.primary || before.multiplier2))
      return "means of what is no 1x1 convolution";
    if (b.linear == kOfFeatures && !before.linear) return "a linear layer without features";
  }
  return nullptr;
}

}  // namespace ghost::cuda
