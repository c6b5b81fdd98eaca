// The planner: which kernel and tile for a shape, a dtype and a device, and the bytes that move. No CUDA in it.
//
// It minimises an estimate of time: the arithmetic of the thread block that does most, times the rounds that the device
// needs for all of them. Nothing was measured; what the estimate knows are sizes.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>

#include "geometry.h"

namespace ghost::cuda {

/// What a device offers: processors, and bytes of shared memory to one block.
struct Device {
  int32_t processors, shared;
};

/// Bytes of global memory that a block's computation moves.
struct Traffic {
  int64_t fused, by_module;
};

constexpr int kMostPixels = 1 << 14;  // of a tile: no shared memory holds more, and 32 bits count what it reads
constexpr int kMostThreads = 512, kTiles[] = {56, 28, 16, 14, 12, 10, 8, 7, 6, 5, 4},
              kLastResort[] = {3, 2, 1};  // where nothing larger fits

/// Largest regions of any tile. What a tile needs down depends on its place down alone, and so across.
inline Regions largest(const Block& b, const Plan& p, bool alone = false) {
  Regions found{};
  const auto widen = [](Span& a, Span s) { a = {0, std::max(a.size(), s.size())}; };
  const auto join = [&](Region& a, const Region& r) { widen(a.down, r.down), widen(a.across, r.across); };
  for (int i = 0; i < std::max(p.tiles_down, p.tiles_across); i++) {
    const int down = std::min(i, p.tiles_down - 1), across = std::min(i, p.tiles_across - 1);
    const Regions r = regions(b, p, down * p.tiles_across + across, alone);
    join(found.out, r.out), join(found.inner, r.inner), join(found.expanded, r.expanded), join(found.x, r.x);
  }
  return found;
}

/// Shared memory of a plan whose tile, threads and kept are set.
inline void lay_out(const Block& b, Plan& p, int element) {
  const Regions r = largest(b, p);
  int at = 0;
  const auto take = [&](int64_t bytes) {
    const int here = at;
    at = static_cast<int>(std::min<int64_t>(int64_t{at} + (bytes + 15) / 16 * 16, int64_t{1} << 30));
    return here;
  };
  const auto rows = [&](int pixels, int lanes) { return take(int64_t{pixels} * row(lanes, element) * element); };
  rows(r.x.pixels(), b.channels);
  if (!b.primary) {
    p.primary_at = rows(r.x.pixels(), kModuleChunk);
    p.shared = kOwnBytes + at;
    return;
  }
  const int all = chunk_lanes(b);
  p.primary_at = rows(r.x.pixels(), b.chunk);
  if (b.kernel) p.expanded_at = rows(r.expanded.pixels(), all);
  p.reduced_at = take((p.kept ? chunks(b) : int64_t{1}) * r.inner.pixels() * row(all, element) * element);
  if (b.hidden) {
    p.partial_at = take(int64_t{p.threads} * 8);
    p.means_at = take(int64_t{lanes(b)} * 4), p.scale_at = take(int64_t{lanes(b)} * 4);
    p.hidden_at = take(int64_t{b.hidden} * 4);
  }
  const int sweep = at;
  at = 0;  // after the last chunk
  p.second_at = rows(r.inner.pixels(), b.primary2);
  if (b.shortcut > 0) {
    p.shortcut_depthwise_at = rows(r.out.pixels(), b.channels);
    p.shortcut_at = rows(r.out.pixels(), b.kept2);
  }
  p.shared = kOwnBytes + std::max(at, sweep);
}

/// Multiply-adds of a tile: those of tensor cores count an eighth.
inline double work(const Block& b, const Plan& p, int element) {
  const Regions r = largest(b, p);
  const double products = element == 2 ? 0.125 : 1;
  const auto cells = [](int pixels) { return up(pixels, kRows); };
  double second = double(cells(r.inner.pixels())) * b.primary2 * products;
  const int made = b.kept2 - b.primary2;
  double total = r.out.pixels() * (double(made) * b.cheap_kernel2 * b.cheap_kernel2 + 4.0 * b.kept2);
  total += 2.0 * r.x.pixels() * b.channels;
  if (!b.primary) return total + second * b.channels;
  const auto sweep = [&](const Regions& s) {
    double sum = double(cells(s.x.pixels())) * b.channels * b.chunk * products;
    sum += double(s.expanded.pixels()) * b.chunk * (b.multiplier * b.cheap_kernel * b.cheap_kernel + 2.0);
    if (b.kernel) sum += double(s.inner.pixels()) * chunk_lanes(b) * (b.kernel * b.kernel + 2.0);
    return sum * chunks(b);
  };
  total += sweep(r) + second * lanes(b);
  if (b.hidden) total += (p.kept ? 0.0 : sweep(largest(b, p, p.launches == 2))) + 2.0 * lanes(b) * b.hidden;
  if (b.shortcut > 0)
    total += double(r.out.pixels()) * b.channels * (b.shortcut * b.shortcut) +
             double(cells(r.out.pixels())) * b.channels * b.kept2 * products;
  return total;
}

/// Warps side by side for the second product; 0 where no arrangement of the threads holds its sums.
inline int arrange(const Block& b, const Plan& p) {
  const int tiles = cdiv(b.primary2, kColumns), pixels = largest(b, p).inner.pixels(), warps = p.threads / 32;
  for (int columns = 1; columns <= warps; columns *= 2) {
    if (columns * kProjectColumns >= tiles && warps / columns * kProjectRows * kRows >= pixels) return columns;
  }
  return 0;
}

/// The plan with this tile; none where it is too large, the threads do not hold its sums, or nothing could be kept.
inline std::optional<Plan> plan_of_tile(const Block& b, int element, int height, int width, int threads, bool kept) {
  Plan p{};
  p.tile_height = std::min(height, out_height(b)), p.tile_width = std::min(width, out_width(b));
  p.tiles_down = cdiv(out_height(b), p.tile_height), p.tiles_across = cdiv(out_width(b), p.tile_width);
  if (int64_t{p.tile_height} * p.tile_width > kMostPixels) return std::nullopt;
  if (int64_t{p.tiles_down} * p.tiles_across > INT32_MAX) return std::nullopt;
  p.threads = threads, p.kept = kept, p.launches = b.hidden && p.tiles() > 1 ? 2 : 1;
  p.columns = b.primary ? arrange(b, p) : 1;
  if (!p.columns || (kept && (!b.hidden || p.tiles() > 1))) return std::nullopt;
  lay_out(b, p, element);
  return p;
}

/// The plan for so many images; none where no tile fits the device, or a launch.
inline std::optional<Plan> make_plan(const Block& b, int element, int64_t images, const Device& device) {
  std::optional<Plan> best;
  double least_time = 0;
  const int height = out_height(b), width = out_width(b);
  const auto consider = [&](int tile_height, int tile_width, int threads, bool kept) {
    const auto p = plan_of_tile(b, element, tile_height, tile_width, threads, kept);
    if (!p || p->shared > device.shared) return;
    const double blocks = double(images) * p->tiles(), each = std::ceil(blocks / device.processors);
    if (blocks > INT32_MAX) return;  // more than a launch takes
    const int resident = std::min({device.shared / p->shared, 2 * kMostThreads / threads, 4});
    const double sharing = std::clamp(each, 1.0, double(resident)), rounds = std::ceil(each / sharing);
    const double speed = std::min(1.0, threads * sharing / kMostThreads);  // of a processor with so many threads
    const double time = (work(b, *p, element) + 2e4) * rounds * sharing / speed;
    if (!best || time < least_time) best = p, least_time = time;
  };
  for (int threads : {256, kMostThreads}) {
    for (bool kept : {false, true}) consider(height, width, threads, kept);
    for (int side : kTiles) {
      if (side < std::max(height, width)) consider(side, side, threads, false);
      if (side < height) consider(side, width, threads, false);
    }
  }
  for (int side : kLastResort)
    if (!best) consider(side, side, kMostThreads, false);
  return best;
}

/// Bytes of the fused block, halos counted as often as they are read, and of the same module by module.
inline Traffic traffic(const Block& b, const Plan& p, int element, int64_t images) {
  const int64_t in = int64_t{b.height} * b.width, out = int64_t{out_height(b)} * out_width(b);
  const auto read_by_tiles = [&](bool alone) {
    int64_t down = 0, across = 0;
    for (int i = 0; i < p.tiles_down; i++) down += regions(b, p, i * p.tiles_across, alone).x.down.size();
    for (int i = 0; i < p.tiles_across; i++) across += regions(b, p, i, alone).x.across.size();
    return down * across;
  };
  const int64_t read = read_by_tiles(false), squeeze = p.launches == 2 ? read_by_tiles(true) : 0;
  Traffic t{};
  t.fused = images * element * ((read + squeeze) * b.channels + out * b.kept2);
  t.by_module = images * element * in * b.channels;
  const auto both = [&](int64_t bytes) { t.fused += images * bytes, t.by_module += images * bytes; };
  if (!b.primary) {
    t.by_module += images * element * out * b.kept2;
    return t;
  }
  const int64_t expanded = int64_t{b.primary} * (1 + b.multiplier);
  t.by_module += images * element * (expanded * (b.kernel ? 2 * in + 2 * out : 2 * in) + out * b.kept2);
  if (b.shortcut >= 0) both(element * (b.shortcut ? in : out) * b.channels);
  if (b.shortcut > 0) t.by_module += images * element * out * 2 * (b.channels + b.kept2);
  if (p.launches == 2) t.fused += images * 2 * int64_t{p.tiles()} * lanes(b) * 4;
  return t;
}

}  // namespace ghost::cuda
