// The planner: launches of a block for a dtype, a number of images and a device. Plain C++, no CUDA.
//
// It lowers the block for some hundred choices of sizes and takes the one whose estimate is least. The estimate counts
// the instructions of each stage, as the machine code has them, and a wait at each stage.
#pragma once
#include "cost.h"
#include "lower.h"

namespace ghost::cuda {

/// What a device offers: processors, and bytes of shared memory to one block.
struct Device {
  int32_t processors, shared;
};

/// Launches, one after the other, and what they have between them.
struct Plan {
  int32_t launches;
  int32_t sums;  // parts of an image whose sums there are, or 0
  Piece piece[3];
  Launch launch[3];
};

/// Bytes of global memory that a block's computation moves.
struct Traffic {
  int64_t fused, by_module;
};

constexpr int kMostThreads = 512;  // of a processor: each has 128 registers
constexpr int kThreads[] = {128, 256, 512};
constexpr double kStageWait = 600;  // cycles between two barriers in which a thread block waits
constexpr double kLaunch = 4000;    // cycles from one launch to the next
constexpr int kFewImages = 8;       // below, an excitation is computed where it is multiplied

/// Bytes of weights that a thread block reads in a step.
inline double weights(const Launch& l, int element) {
  double sum = 0;
  for (int i = 0; i < l.stages; i++) {
    const Stage& g = l.stage[i];
    if (g.kind == Kind::product && !g.once) sum += double(g.lanes) * g.depth * kDepth * element;
    if (g.kind == Kind::depthwise) sum += double(g.lanes) * g.kernel * g.kernel * 4;
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

/// Bytes between launches that do not stay in a cache count as cycles, 16 bytes a cycle and processor.
inline double between(const Block& b, int element, int64_t images, const Device& device) {
  const double bytes = double(images) * out_height(b) * out_width(b) * lanes(b) * element;
  return 2 * bytes / (device.processors * 16.0);
}

/// What the planner must keep to, as far as it is not 0: for tests, and for tables of what was measured.
struct Wish {
  int32_t split;  // 1: one launch; 2: the expanded map goes through memory
  int32_t band, strip, step, chunks, threads;
};
constexpr int kWishes = sizeof(Wish) / sizeof(int32_t);

class Planner {
 public:
  Planner(const Block& b, int element, int64_t images, const Device& device, const Wish& wish)
      : b_(b), element_(element), images_(images), device_(device), wish_(wish) {}

  std::optional<Plan> plan(const Extras& extras) {
    if (!b_.primary) return pieces({{Piece::project, extras}});
    const bool few = images_ < kFewImages;
    std::optional<Plan> fused, split;
    double cycles_fused = 0;
    if (wish_.split != 2) fused = pieces({{Piece::whole, extras}}), cycles_fused = cycles_;
    if (wish_.split != 1) {
      if (const auto expanded = best(Piece::expand, extras)) {
        Extras rest = extras;
        rest.sums = b_.hidden ? expanded->parts() / expanded->chunks : 0, rest.excite = b_.hidden && few;
        split = b_.hidden && !few ? pieces({{Piece::expand, extras}, {Piece::excite, rest}, {Piece::project, rest}})
                                  : pieces({{Piece::expand, extras}, {Piece::project, rest}});
        if (split) split->sums = rest.sums;
      }
    }
    if (fused && b_.hidden) fused->sums = 1;
    const double cycles_split = cycles_ + between(b_, element_, images_, device_);
    return fused && (!split || cycles_fused <= cycles_split) ? fused : split;
  }

 private:
  struct Wanted {
    Piece piece;
    Extras extras;
  };

  std::optional<Plan> pieces(std::initializer_list<Wanted> all) {
    Plan p{};
    double sum = 0;
    for (const Wanted& wanted : all) {
      const auto found = best(wanted.piece, wanted.extras);
      if (!found) return std::nullopt;
      p.piece[p.launches] = wanted.piece, p.launch[p.launches++] = *found, sum += cycles_;
    }
    cycles_ = sum;
    return p;
  }

  /// The launch with the least estimate; that estimate in `cycles_`.
  std::optional<Launch> best(Piece piece, const Extras& extras) {
    std::optional<Launch> found;
    cycles_ = 0;
    const bool excites = piece == Piece::excite;
    const int height = excites ? 1 : out_height(b_), width = excites ? kImagesOfExcitation : out_width(b_);
    const bool whole_image = excites || (piece == Piece::whole && b_.hidden),
               one_step = extras.squeeze && extras.residual;
    const auto consider = [&](const Choice& c) {
      const auto l = Lowering(b_, element_, piece, c, extras).launch();
      if (!l || l->shared > device_.shared || counts_too_far(*l)) return;
      Launch made = *l;
      const int64_t wanted = (images_ + made.images_at_once - 1) / made.images_at_once;
      if (int64_t{made.bands} * made.strips * made.chunks > INT32_MAX || wanted > INT32_MAX) return;
      const int64_t room = std::max(1, resident(made, device_) * device_.processors / made.parts());
      made.grid = static_cast<int32_t>(std::min({wanted, room, int64_t{65535}})),
      made.images = static_cast<int32_t>(wanted);
      const double cycles = estimate(made, element_, images_, device_);
      if (!found || cycles < cycles_) found = made, cycles_ = cycles;
    };
    for (int strips = 1; strips <= width; strips *= 2) {
      if (strips > 1 && (whole_image || wish_.strip)) break;
      if (strips > 1 && found && images_ * strips >= 9 * device_.processors) break;
      const int strip =
          whole_image ? width : std::min(wish_.strip ? wish_.strip : up(cdiv(width, strips), kGroup / 2), width);
      for (int bands = 1; bands <= height; bands *= 2) {
        if (bands > 1 && (whole_image || wish_.band)) break;
        if (bands > 1 && found && images_ * strips * bands >= 4 * device_.processors) break;
        const int band = whole_image ? height : std::min(wish_.band ? wish_.band : cdiv(height, bands), height);
        for (const int step : {band, 32, 16, 12, 8, 4, 2, 1}) {
          if (step > band || (step < band && (whole_image || one_step || wish_.step))) continue;
          for_each_chunk(piece, [&](int chunks) {
            for (const int threads : kThreads)
              if (!wish_.threads || threads == wish_.threads)
                consider({band, strip, wish_.step && !whole_image && !one_step ? std::min(wish_.step, band) : step,
                          chunks, threads});
          });
        }
      }
    }
    return found;
  }

  /// Whether 31 bits do not count the elements of an image of the output.
  static bool counts_too_far(const Launch& l) {
    for (int i = 0; i < l.stages; i++)
      if (l.stage[i].kind == Kind::store && int64_t{l.height} * l.width * l.stage[i].channels > INT32_MAX) return true;
    return false;
  }

  /// In how many chunks the lanes can be: only the expanded map by itself has several.
  template <class Visit>
  void for_each_chunk(Piece piece, const Visit& visit) const {
    const int groups = lanes_of(b_.primary) / kColumns, most = piece == Piece::expand ? groups : 1;
    for (int chunks = 1; chunks <= most; chunks++)
      if (groups % chunks == 0 && (!wish_.chunks || chunks == wish_.chunks || most == 1 || groups % wish_.chunks))
        visit(chunks);
  }

  const Block& b_;
  const int element_;
  const int64_t images_;
  const Device device_;
  const Wish wish_;
  double cycles_ = 0;
};

/// The plan for so many images; none where nothing fits the device.
inline std::optional<Plan> make_plan(const Block& b, int element, int64_t images, const Device& device,
                                     const Extras& extras = {}, const Wish& wish = {}) {
  return Planner(b, element, std::max<int64_t>(images, 1), device, wish).plan(extras);
}

}  // namespace ghost::cuda
