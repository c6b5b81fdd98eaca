// What a stage costs a thread block, counted as the machine code has it. Plain C++, no CUDA.
#pragma once
#include <algorithm>
#include <cmath>

#include "strip.h"

namespace ghost::cuda {

// Instructions of an item of a stage in float16 on sm_90, and of what a warp does before its items (`begin`):
// benchmarks/static_model/cuda.json.
constexpr double kProduct = 73;                               // of 32 pixels x 32 lanes
constexpr double kProductTall = 103;                          // of 64 pixels x 16 lanes
constexpr double kProductSmall = 39;                          // of 16 pixels x 16 lanes
constexpr double kProductDeep = 112, kProductDeepDepth = 24;  // with weights that are read again: of the first 16
                                                              // inputs, with all else, and of 16 more
constexpr double kProductSmallDeep = 65, kProductSmallDeepDepth = 16;
constexpr double kProductAhead = 82, kProductAheadDepth = 16;  // of 16 pixels x 32 lanes
constexpr double kProductBegin = 51;
constexpr double kDepthwise31 = 104, kDepthwise32 = 158;  // 4 x 16 pixels
constexpr double kDepthwise31Low = 71, kDepthwise32Low = 97, kDepthwise51Low = 119, kDepthwise52Low = 183;  // 2 x 16
constexpr double kDepthwise3Begin = 46, kDepthwise5Begin = 62;
constexpr double kWindow = 78, kLoad = 16, kStore = 13, kStoreParts = 25, kStoreAdded = 34, kScale = 20;  // 16 bytes
constexpr double kLoadBegin = 31, kStoreBegin = 36, kScaleBegin = 21;                                     // a row
constexpr double kMean = 16, kMeanBegin = 60;  // four lanes of a part, and of all parts
constexpr double kActivate = 59;               // two lanes
constexpr double kSum = 26;                    // 32 pixels x 8 lanes
// Cycles of a processor for a product of 16 x 16 x 8 and of 16 x 8 x 8 at the rate of sm_80, which later ones exceed,
// and for a matrix of 8 x 8 from or to shared memory.
constexpr double kMultiply = 2, kMultiplyHalf = 1, kMatrix = 1;
// The same in float32, without tensor cores.
constexpr double kPlainProduct = 250, kPlainProductDepth = 700;
constexpr double kPlainTap = 36, kPlainTaps = 40;  // of 2 lanes x 8 columns

constexpr double kIssue = 2.0;       // instructions a cycle of a processor, of 4
constexpr double kWarpIssue = 0.25;  // of one warp by itself
// Cycles until what a warp reads is there: from memory, from the cache of the device and from that of the processor,
// which has so many bytes beside the shared memory. Two of them are those of docs/performance/static-model.md.
constexpr double kMemoryWait = 700, kCacheWait = 270, kNearWait = 35, kNearBytes = 24 << 10;

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

/// Bytes of a stage's weight.
inline double weight_bytes(const Stage& g, int element) {
  if (g.kind == Kind::product) return double(g.lanes) * g.depth * kDepth * element;
  if (g.kind != Kind::depthwise) return 0;
  return double(g.lanes) * element * (element == 2 ? taps_of_lane(g.kernel) : g.kernel * g.kernel);
}

/// Of the rows that a step which makes so many output rows adds to a map.
inline Cost cost(const Launch& l, const Stage& g, int element) {
  const Map& m = l.map[g.out];
  const Extent extent = extent_of(l, m);
  const double rows = extent.rows, columns = extent.columns, pixels = rows * columns;
  const double groups = cdiv(extent.columns, kGroup);
  const auto by_thread = [&](double items, double each) {
    return Cost{std::ceil(items / 32) * each, std::ceil(items / l.threads) * each, 0};
  };
  const auto by_row = [&](double each, double begin, double wait = 0) {  // as `for_vectors`
    const int vectors = cdiv(g.lanes * element, 16), pieces = pieces_of(l, m, vectors);
    const double most = std::ceil(columns * vectors / (32 * pieces)), warps = l.threads / 32;
    return Cost{rows * (pieces * begin + std::ceil(columns * vectors / 32) * each),
                std::ceil(rows * pieces / warps) * (begin + most * (each + wait * kWarpIssue)), 0};
  };
  switch (g.kind) {
    case Kind::product: {
      const int high = rows_of_tile(g.kernel), wide = columns_of_tile(g.kernel);
      const double inners = std::ceil(pixels / (kRows * high)), outers = g.items.value;
      if (element == 4)
        return shared_cost(l, outers, inners, (kPlainProduct + g.depth * kPlainProductDepth) / (high == 1 ? 3 : 1), 20,
                           0);
      const double pipes = g.depth * std::max(high * wide * kMultiply, 4 * high * kMatrix) + 2 * high * wide * kMatrix;
      const bool ahead = g.kernel == kAheadTile, small = g.kernel == kSmallTile;
      const double begin = ahead ? kProductAhead : small ? kProductSmallDeep : kProductDeep;
      const double step = ahead ? kProductAheadDepth : small ? kProductSmallDeepDepth : kProductDeepDepth;
      if (g.depth <= kKept && !ahead) {
        const double each = small ? kProductSmall : g.kernel == kTallTile ? kProductTall : kProduct;
        return shared_cost(l, outers, inners, each, kProductBegin, pipes);
      }
      Cost c = shared_cost(l, outers, inners, begin + (g.depth - 1) * step, kProductBegin, pipes);
      const double wait = weight_bytes(g, element) > kNearBytes ? kCacheWait : kNearWait;
      c.longest += std::ceil(outers * inners / (l.threads / 32)) * g.depth *
                   std::max(0., wait * kWarpIssue - (ahead ? kAhead * step : 0));
      return c;
    }
    case Kind::depthwise: {
      const bool known = (g.kernel == 3 || g.kernel == 5) && g.stride <= 2;
      if (element == 4) {
        const double taps = g.kernel * g.kernel, high = !known || g.kernel == 5 ? 1 : 2;
        return by_thread(g.lanes / 2 * groups * std::ceil(rows / high),
                         known ? (kPlainTap * taps + 60) * high : kPlainTaps * taps);
      }
      const double high = known ? g.rows : 1, inners = std::ceil(groups * std::ceil(rows / high) / 2);
      const double items[2][2] = {{kDepthwise31Low, kDepthwise31}, {kDepthwise32Low, kDepthwise32}};
      const double each = !known          ? 60 + 9.0 * g.kernel * g.kernel
                          : g.kernel == 3 ? items[g.stride - 1][g.rows / kHighTile]
                                          : (g.stride == 1 ? kDepthwise51Low : kDepthwise52Low);
      const double begin = g.kernel == 3 ? kDepthwise3Begin : kDepthwise5Begin;
      // Of each row that is read the last column has the conflicts of its stride; the others have none.
      const double apart = std::min(g.stride, 8), others = 2 * (g.kernel - 1) * (known ? 1 : apart);
      const double read = ((high - 1) * g.stride + g.kernel) * (others + 2 * apart);
      const double products = high * g.kernel * (g.kernel / 2 * kMultiply + kMultiplyHalf);
      return shared_cost(l, cdiv(g.lanes, kOctet), inners, each, begin,
                         std::max(products, (read + 2 * high) * kMatrix));
    }
    case Kind::load:
      if (l.window.size && !g.tensor) return by_thread(pixels * cdiv(g.lanes * element, 16), kWindow);
      return by_row(kLoad, kLoadBegin);
    case Kind::store:
    case Kind::join: {
      const bool whole = g.primary == g.lanes || (g.primary == g.group && g.multiplier.value == 1);
      const double each = (whole ? kStore : kStoreParts) + (g.tensor == kNoMap ? 0 : kStoreAdded - kStoreParts);
      return by_row(each, kStoreBegin, g.tensor == kResidual ? kMemoryWait : 0);
    }
    case Kind::scale:
      return by_row(kScale, kScaleBegin);
    case Kind::activate:
      return by_thread(pixels * g.lanes / 2, kActivate);
    case Kind::sum: {
      const Cost c = element == 4 ? by_thread(pixels * g.lanes / 2, 19)
                                  : shared_cost(l, 1, g.lanes / 8.0 * std::ceil(pixels / 32), kSum, 30, 4 * kMatrix);
      return {c.all + 200, c.longest + 100, c.pipes};
    }
    case Kind::mean:
      return by_thread(g.lanes / 4 * columns, kMeanBegin + kMean * g.count);
  }
  return {};
}

/// Elements of an image that a launch reads and writes, halos counted as often as they are read.
inline int64_t moved(const Launch& l) {
  int64_t elements = 0;
  for (int j = 0; j < l.stages; j++) {
    const Stage& g = l.stage[j];
    const Map& m = l.map[g.out];
    if (g.kind == Kind::store) elements += int64_t{m.height} * m.width * g.lanes * (g.between ? 1 : l.chunks);
    if ((g.kind == Kind::store || g.kind == Kind::join) && g.tensor == kResidual)
      elements += int64_t{m.height} * m.width * g.lanes * l.chunks;
    if (g.kind != Kind::load) continue;
    const auto read = [&](int parts, int part, int limit, int of) {
      int64_t sum = 0;
      for (int p = 0; p < parts; p++) {
        const int from = p * part, to = std::min(from + part, limit);
        sum += std::min(to * m.reach.per + m.reach.after, of) - std::max(from * m.reach.per - m.reach.before, 0);
      }
      return sum;
    };
    const int64_t pixels = read(l.bands, l.band, l.height, m.height) * read(l.strips, l.strip, l.width, m.width);
    const Window& w = l.window;  // of whose pixels those are read that a stride leaves, and neighbours from a cache
    const int of_window = w.stride * w.stride * w.channels;
    elements += pixels * l.chunks * (w.size && g.tensor == 0 ? of_window : g.lanes);
  }
  return elements / l.images_at_once;
}

/// Bytes that a thread block loads for a step.
inline double loaded(const Launch& l, const Stage& g, int element) {
  const Extent e = extent_of(l, l.map[g.out]);
  const bool is_window = l.window.size && !g.tensor;
  const int each = is_window ? l.window.stride * l.window.stride * l.window.channels : g.lanes;
  return double(e.rows) * e.columns * each * element;
}

}  // namespace ghost::cuda
