// The planner of a launch: the sizes for a run of blocks, a dtype, a number of images and a device. Plain C++, no CUDA.
//
// It lowers the run for some hundred choices of sizes and takes the one whose estimate is least. The estimate counts
// the instructions of each stage, as the machine code has them, and a wait at each stage.
#pragma once
#include <optional>

#include "cost.h"
#include "lower.h"

namespace ghost::cuda {

/// What a device offers: processors, and bytes of shared memory to one block.
struct Device {
  int32_t processors, shared;
};

constexpr int kMostThreads = 512;  // of a processor: each has 128 registers
constexpr int kThreads[] = {128, 256, 512};
constexpr double kStageWait = 600;  // cycles between two barriers in which a thread block waits
constexpr double kLaunch = 4000;    // cycles from one launch to the next

/// Bytes of weights that a thread block reads in a step.
inline double weights(const Launch& l, int element) {
  double sum = 0;
  for (int i = 0; i < l.stages; i++) {
    const Stage& g = l.stage[i];
    if (g.kind == Kind::product && !g.once) sum += double(g.lanes) * g.depth * kDepth * element;
    if (g.kind == Kind::depthwise)
      sum += double(g.lanes) * element * (element == 2 ? taps_of_lane(g.kernel) : g.kernel * g.kernel);
  }
  return sum;
}

/// Thread blocks that a processor has at once.
inline int resident(const Launch& l, const Device& device) {
  return std::max(1, std::min({(device.shared + 1024) / (l.shared + 1024), kMostThreads / l.threads, 16}));
}

/// Instructions of all warps of a launch.
inline double all_instructions(const Launch& l, int element, int64_t images) {
  const double groups = std::ceil(double(images) / l.images_at_once), steps = cdiv(l.band, l.step);
  double sum = 0;
  for (int i = 0; i < l.stages; i++) sum += cost(l, l.stage[i], element).all * (l.stage[i].once ? 1 : steps);
  return sum * groups * l.parts();
}

/// Cycles of a launch.
inline double estimate(const Launch& l, int element, int64_t images, const Device& device) {
  const double groups = std::ceil(double(images) / l.images_at_once), steps = cdiv(l.band, l.step);
  const int most_resident = resident(l, device);
  const double blocks = double(l.parts()) * l.grid;
  const double sharing = std::clamp(std::ceil(blocks / device.processors), 1.0, double(most_resident));
  double alone = 0, work = 0;
  for (int i = 0; i < l.stages; i++) {
    const Cost c = cost(l, l.stage[i], element);
    const double times = l.stage[i].once ? 1 : steps, busy = std::max(c.all / kIssue, c.pipes);
    alone += times * (cycles(c) + (l.stage[i].kind == Kind::load ? 0 : kStageWait)), work += times * busy;
  }
  const double rounds = std::ceil(blocks / (double(device.processors) * most_resident)) * std::ceil(groups / l.grid);
  const double cycles = rounds * std::max(alone, work * sharing);
  const double moved =
      groups * l.parts() * steps * weights(l, element) / (device.processors * 32.0);  // 32 bytes a cycle
  return std::max(cycles, moved) + l.shared / 16.0 / l.threads * 4 + kLaunch;
}

/// What the planner must keep to, as far as it is not 0: for tests, and for tables of what was measured.
struct Wish {
  int32_t split;  // 1: a bottleneck is in one launch; 2: the expanded map goes through memory
  int32_t band, strip, step, chunks, threads;
  int32_t joined;  // 1: no two blocks are in one launch; 2: as many as can be are
};
constexpr int kWishes = sizeof(Wish) / sizeof(int32_t);

struct Planned {
  Launch launch;
  double cycles;
};

class Planner {
 public:
  Planner(const Block* blocks, int element, int64_t images, const Device& device, const Wish& wish)
      : blocks_(blocks), element_(element), images_(images), device_(device), wish_(wish) {}

  /// The launch of a run with the least estimate; none where none fits.
  std::optional<Planned> best(const Run& run, const Extras& extras) const {
    std::optional<Planned> found;
    const Block& last = blocks_[run.last];
    const int height = height_of(last, run), width = width_of(last, run, element_);
    const bool by_image = run.excites || last.linear || (run.is_whole_block() && last.hidden),
               one_step = extras.squeeze && extras.residual;
    const auto consider = [&](const Choice& c) {  // whether it fits
      Lowering lowering(blocks_, run, element_, c, extras);
      Launch* const l = lowering.launch();
      if (!l || l->shared > device_.shared || counts_too_far(*l)) return false;
      const int64_t wanted = (images_ + l->images_at_once - 1) / l->images_at_once;
      if (int64_t{l->bands} * l->strips * l->chunks > INT32_MAX || wanted > INT32_MAX) return false;
      const int64_t room = std::max(1, resident(*l, device_) * device_.processors / l->parts());
      l->grid = static_cast<int32_t>(std::min({wanted, room, int64_t{65535}})),
      l->images = static_cast<int32_t>(wanted);
      const double cycles = estimate(*l, element_, images_, device_);
      if (!found || cycles < found->cycles) found = Planned{*l, cycles};
      return true;
    };
    constexpr int kHalf = kGroup / 2;  // of whose multiples strips are: products need no whole groups
    const int64_t images = (images_ + images_at_once(last, run, element_) - 1) / images_at_once(last, run, element_);
    // Several blocks need not be in one launch; a part of one must.
    const auto is_enough = [&](int64_t parts) {
      return (found || !run.is_one_block()) && parts >= 4 * device_.processors;
    };
    for (int strips = 1, strip = 0; strip != 1; strips *= 2) {
      if (strips > 1 && (by_image || wish_.strip || is_enough(images * strips))) break;
      const int columns = cdiv(width, strips), wanted = columns < kHalf ? columns : up(columns, kHalf);
      if (strips > 1 && columns < kHalf && found) break;  // only where there is no memory for more
      strip = by_image ? width : std::min(wish_.strip ? wish_.strip : wanted, width);
      for (int bands = 1, band = 0; band != 1; bands *= 2) {
        if (bands > 1 && (by_image || wish_.band || is_enough(images * strips * bands))) break;
        band = by_image ? height : std::min(wish_.band ? wish_.band : cdiv(height, bands), height);
        for_each_chunk(run, extras, [&](int chunks) {
          const int parts = strips * bands * chunks;
          if (chunks > 1 && is_enough(run.ends_within ? parts : images * parts / 2)) return;
          // Where a processor has one thread block, many threads and few steps are best.
          const bool is_alone = images * parts <= device_.processors;
          for (const int step : {band, 32, 16, 12, 8, 4, 2, 1}) {
            if (step > band || (step < band && (by_image || one_step || wish_.step))) continue;
            const int rows = wish_.step && !by_image && !one_step ? std::min(wish_.step, band) : step;
            bool fits = false;
            for (const int threads : kThreads)
              if (wish_.threads ? threads == wish_.threads : !is_alone || threads == kMostThreads)
                fits |= consider({band, strip, rows, chunks, threads});
            if (fits && is_alone) break;
          }
        });
      }
    }
    return found;
  }

 private:
  /// Whether 31 bits do not count the elements of an image of the output.
  static bool counts_too_far(const Launch& l) {
    const Window& w = l.window;
    if (w.size && int64_t{w.height} * w.width * w.channels > INT32_MAX) return true;
    for (int i = 0; i < l.stages; i++) {
      const Map& m = l.map[l.stage[i].out];
      if (l.stage[i].kind == Kind::store && int64_t{m.height} * m.width * l.stage[i].channels > INT32_MAX) return true;
    }
    return false;
  }

  /// In how many chunks the lanes of the result can be: the expanded map by itself has several, and a 1x1 convolution.
  template <class Visit>
  void for_each_chunk(const Run& run, const Extras& extras, const Visit& visit) const {
    const Block& b = blocks_[run.last];
    const bool is_product = !run.excites && !b.primary && !b.multiplier2 && b.kept2 % kColumns == 0 && !extras.residual;
    const int groups = lanes_of(run.ends_within ? b.primary : b.primary2) / kColumns;
    const int most = run.ends_within ? (is_separable(b) ? 1 : groups) : is_product ? groups : 1;
    for (int chunks = 1; chunks <= most; chunks++)
      if (groups % chunks == 0 && (!wish_.chunks || chunks == wish_.chunks || most == 1 || groups % wish_.chunks))
        visit(chunks);
  }

  const Block* const blocks_;
  const int element_;
  const int64_t images_;
  const Device device_;
  const Wish wish_;
};

}  // namespace ghost::cuda
