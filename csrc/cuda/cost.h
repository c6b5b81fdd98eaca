// What a stage costs a thread block, counted as the machine code has it. Plain C++, no CUDA.
#pragma once
#include <algorithm>
#include <cmath>

#include "strip.h"

namespace ghost::cuda {

// Instructions of an item of a stage in float16 on sm_90, and of what a warp does before its items (`begin`):
// benchmarks/static_model/cuda.json.
constexpr double kProduct = 79;                               // of 32 pixels x 32 lanes
constexpr double kProductTall = 105;                          // of 64 pixels x 16 lanes
constexpr double kProductSmall = 33;                          // of 16 pixels x 16 lanes
constexpr double kProductDeep = 107, kProductDeepDepth = 26;  // with weights that are read again; of 16 inputs
constexpr double kProductSmallDeep = 44, kProductSmallDeepDepth = 13;
constexpr double kProductBegin = 54;
constexpr double kDepthwise31 = 118, kDepthwise32 = 136, kDepthwise51 = 184,
                 kDepthwise52 = 220;                                                 // 4 x 16 pixels x 8 lanes
constexpr double kDepthwise31Low = 77, kDepthwise32Low = 82, kDepthwise52Low = 132;  // 2 x 16 pixels
constexpr double kDepthwise3Begin = 42, kDepthwise5Begin = 61;
constexpr double kWindow = 78, kLoad = 29, kStore = 46, kScale = 30, kActivate = 59;  // 16 bytes; two lanes
constexpr double kSum = 26;                                                           // 32 pixels x 8 lanes
// Cycles of a processor for a product of 16 x 16 x 8 and of 16 x 8 x 8 at the rate of sm_80, which later ones exceed,
// and for a matrix of 8 x 8 from or to shared memory.
constexpr double kMultiply = 2, kMultiplyHalf = 1, kMatrix = 1;
// The same in float32, without tensor cores.
constexpr double kPlainProduct = 250, kPlainProductDepth = 700;
constexpr double kPlainTap = 36, kPlainTaps = 40;  // of 2 lanes x 8 columns

constexpr double kIssue = 2.0;       // instructions a cycle of a processor, of 4
constexpr double kWarpIssue = 0.25;  // of one warp by itself

/// What a stage costs in a step: instructions of all warps of a thread block and of the one that has most, and cycles
/// in which tensor cores or shared memory can do nothing else.
struct Cost {
  double all, longest, pipes;
};

/// Cycles of a thread block that has a processor for itself.
inline double cycles(const Cost& c) { return std::max({c.all / (1.5 * kIssue), c.pipes, c.longest / kWarpIssue}); }

/// Of a stage that `for_share` gives to warps; `begin`: instructions before the items of another outer number.
inline Cost shared_cost(const Launch& l, double outers, double inners, double each, double begin, double pipes) {
  const double items = outers * inners, warps = l.threads / 32, most = std::ceil(items / warps);
  return {items * each + std::min(items, warps + outers) * begin, most * each + std::min(most, outers) * begin,
          items * pipes};
}

/// Of the rows that a step which makes so many output rows adds to a map.
inline Cost cost(const Launch& l, const Stage& g, int element) {
  const Map& m = l.map[g.out];
  const double rows = std::min(double(l.step) * std::max(m.reach.per, 0) + (m.reach.per ? 0 : 1), double(m.height));
  const double columns = std::min(double(l.strip) * m.reach.per + m.reach.before + m.reach.after, double(m.width));
  const double pixels = rows * columns, groups = cdiv(int(columns), kGroup);
  const auto by_thread = [&](double items, double each) {
    return Cost{std::ceil(items / 32) * each, std::ceil(items / l.threads) * each, 0};
  };
  switch (g.kind) {
    case Kind::product: {
      const double inners = std::ceil(pixels / (kRows * g.kernel)), outers = g.items.value;
      const bool small = g.kernel == kSmallTile, deep = g.depth > kKept;
      if (element == 4)
        return shared_cost(l, outers, inners, (kPlainProduct + g.depth * kPlainProductDepth) / (small ? 3 : 1), 20, 0);
      const double pipes =
          g.depth * std::max(g.kernel * columns_of_tile(g.kernel) * kMultiply, 4 * g.kernel * kMatrix) +
          2 * g.kernel * columns_of_tile(g.kernel) * kMatrix;
      const double each = deep    ? small ? kProductSmallDeep + g.depth * kProductSmallDeepDepth
                                          : kProductDeep + g.depth * kProductDeepDepth
                          : small ? kProductSmall
                                  : (g.kernel == kTallTile ? kProductTall : kProduct);
      return shared_cost(l, outers, inners, each, kProductBegin, pipes);
    }
    case Kind::depthwise: {
      const bool known = (g.kernel == 3 || g.kernel == 5) && g.stride <= 2;
      if (element == 4) {
        const double taps = g.kernel * g.kernel, high = !known || g.kernel == 5 ? 1 : 2;
        return by_thread(g.lanes / 2 * groups * std::ceil(rows / high),
                         known ? (kPlainTap * taps + 60) * high : kPlainTaps * taps);
      }
      const bool low = g.kernel == 5 || rows <= 2;  // of 5 x 5 at stride 1 the count is that of four rows
      const double high = !known ? 1 : low ? 2 : 4, inners = std::ceil(groups * std::ceil(rows / high) / 2);
      const double each = !known          ? 60 + 9.0 * g.kernel * g.kernel
                          : g.kernel == 3 ? (g.stride == 1 ? (low ? kDepthwise31Low : kDepthwise31)
                                                           : (low ? kDepthwise32Low : kDepthwise32))
                                          : (g.stride == 1 ? kDepthwise51 : (low ? kDepthwise52Low : kDepthwise52));
      const double begin = g.kernel == 3 ? kDepthwise3Begin : kDepthwise5Begin;
      const double read = ((high - 1) * g.stride + g.kernel) * 2 * g.kernel * std::min(g.stride, 8);
      const double products = high * g.kernel * (g.kernel / 2 * kMultiply + kMultiplyHalf);
      return shared_cost(l, cdiv(g.lanes, kOctet), inners, each, begin,
                         std::max(products, (read + 2 * high) * kMatrix));
    }
    case Kind::load:
      return by_thread(pixels * cdiv(g.lanes * element, 16), l.window.size && !g.tensor ? kWindow : kLoad);
    case Kind::store:
    case Kind::join:
      return by_thread(pixels * cdiv(g.lanes * element, 16), kStore);
    case Kind::scale:
      return by_thread(pixels * cdiv(g.lanes * element, 16), kScale);
    case Kind::activate:
      return by_thread(pixels * g.lanes / 2, kActivate);
    case Kind::sum: {
      const Cost c = element == 4 ? by_thread(pixels * g.lanes / 2, 19)
                                  : shared_cost(l, 1, g.lanes / 8.0 * std::ceil(pixels / 32), kSum, 30, 4 * kMatrix);
      return {c.all + 200, c.longest + 100, c.pipes};
    }
    case Kind::mean:
      return by_thread(g.lanes * columns, 30);
  }
  return {};
}

}  // namespace ghost::cuda
