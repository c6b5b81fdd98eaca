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
constexpr double kStepWait = 300;   // more of them for a step: zeros above and below the image, where the next step is
constexpr double kLaunch = 4000;    // cycles from one launch to the next
// Bytes a cycle and processor: of all memory together (a copy on an H200 has 4.26 TB/s), and of what one thread block
// reads from memory or from the cache of the device.
constexpr double kCopied = 16.3, kRead = 32;

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
///
/// A thread block computes for `alone` cycles with all that it waits for, and has `work` cycles of a processor that it
/// shares with others. The first rows of an image are loaded while the last ones of the image before are computed:
/// where that is too late and nothing else runs on the processor, they are waited for. No launch takes less time than
/// the memory, or the caches that weights come from.
inline double estimate(const Launch& l, int element, int64_t images, const Device& device) {
  const double groups = std::ceil(double(images) / l.images_at_once), steps = cdiv(l.band, l.step);
  const int most_resident = resident(l, device);
  const double blocks = double(l.parts()) * l.grid, processors = std::min(blocks, double(device.processors));
  const double sharing = std::clamp(std::ceil(blocks / device.processors), 1.0, double(most_resident));
  double alone = steps * kStepWait, work = 0, weights = 0;
  double step = 0, there = 0;  // cycles of the last step, and when the rows are there that it loads
  Cost together{};             // of stages without a barrier between them
  for (int i = 0; i < l.stages; i++) {
    const Stage& g = l.stage[i];
    const Cost c = cost(l, g, element);
    const double times = g.once ? 1 : steps;
    work += times * std::max(c.all / kIssue, c.pipes), weights += times * weight_bytes(g, element);
    if (g.once)
      alone += cycles(c) + (g.sync ? kStageWait : 0);
    else
      together = {together.all + c.all, together.longest + c.longest, together.pipes + c.pipes};
    if (g.kind == Kind::load) there = std::max(there, step) + loaded(l, g, element) / kRead;
    if (g.sync || i + 1 == l.stages) {
      const double level = cycles(together) + (together.all ? kStageWait : 0);
      alone += steps * level, step += level, together = {};
    }
  }
  const double first = there > 0 ? std::max(0., there + kMemoryWait - step) : 0;
  alone += first, work += sharing == 1 ? first : 0;
  const double rounds = std::ceil(blocks / (double(device.processors) * most_resident)) * std::ceil(groups / l.grid);
  const double computed = rounds * std::max(alone, work * sharing);
  const double read = groups * l.parts() * weights / (processors * kRead);
  const double copied = double(images) * moved(l) * element / (device.processors * kCopied);
  return std::max({computed, read, copied}) + l.shared / 16.0 / l.threads * 4 + kLaunch;
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
    const auto is_enough = [&](int64_t parts, int rounds = 4) {
      return (found || !run.is_one_block()) && parts >= int64_t{rounds} * device_.processors;
    };
    for (int strips = 1, strip = 0; strip != 1; strips *= 2) {
      if (strips > 1 && (by_image || wish_.strip || is_enough(images * strips))) break;
      const int columns = cdiv(width, strips), wanted = columns < kHalf ? columns : up(columns, kHalf);
      if (strips > 1 && columns < kHalf && found) break;  // only where there is no memory for more
      strip = by_image ? width : std::min(wish_.strip ? wish_.strip : wanted, width);
      for (int bands = 1, band = 0; band != 1; bands *= 2) {
        if (bands > 1 && (by_image || wish_.band || is_enough(images * strips * bands, 16))) break;
        const bool is_single = bands > 1 && is_enough(images * strips * bands);  // low bands pay only in one step
        band = by_image ? height : std::min(wish_.band ? wish_.band : cdiv(height, bands), height);
        for_each_chunk(run, extras, [&](int chunks) {
          const int parts = strips * bands * chunks;
          if (chunks > 1 && is_enough(run.ends_within ? parts : images * parts / 2)) return;
          // Where a processor has one thread block, many threads and few steps are best.
          const bool is_alone = images * parts <= device_.processors;
          for (const int step : {band, 32, 16, 14, 12, 8, 7, 4, 2, 1}) {
            if (step > band || (step < band && (by_image || one_step || wish_.step || is_single))) continue;
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

  /// In how many chunks the lanes of the result can be: the expanded map by itself has several, an excitation by
  /// itself, and a 1x1 convolution.
  template <class Visit>
  void for_each_chunk(const Run& run, const Extras& extras, const Visit& visit) const {
    const Block& b = blocks_[run.last];
    const bool is_product = !run.excites && !b.primary && !b.multiplier2 && b.kept2 % kColumns == 0 && !extras.residual;
    const int all = run.excites ? lanes(b) : lanes_of(run.ends_within ? b.primary : b.primary2);
    const int groups = all / kColumns;
    const int most = run.ends_within ? (is_separable(b) ? 1 : groups) : is_product || run.excites ? groups : 1;
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
