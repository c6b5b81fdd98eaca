// The planner of a chain of blocks: where it is cut into launches. Plain C++, no CUDA.
//
// A cut is between two blocks or within a bottleneck, where its expanded map is. What is in one launch stays in shared
// memory, and rows beside a band are computed again; what is cut goes through memory and costs a launch.
#pragma once
#include <limits>
#include <vector>

#include "plan.h"

namespace ghost::cuda {

/// A launch of a chain, and what there is to say of it.
struct Part {
  Run run;
  Launch launch;
  double cycles;
};
using Plan = std::vector<Part>;

constexpr int kMostBlocks = 64;  // of a chain
constexpr int kMostJoined = 3;   // blocks of which a launch has something
constexpr int kFewImages = 8;    // below, an excitation is computed where it is multiplied

class ChainPlanner {
 public:
  ChainPlanner(const std::vector<Block>& blocks, int element, int64_t images, const Device& device, const Wish& wish,
               const Extras& extras)
      : blocks_(blocks),
        element_(element),
        images_(std::max<int64_t>(images, 1)),
        device_(device),
        wish_(wish),
        extras_(extras),
        planner_(blocks.data(), element, images_, device, wish) {}

  /// The launches with the least estimate in all; empty where a block fits in no way.
  Plan plan() const {
    const int end = 2 * static_cast<int>(blocks_.size());
    std::vector<Place> places(end + 1);
    places[0].cycles = 0;
    for (int from = 0; from < end; from++) {
      if (!places[from].is_reached()) continue;
      for (int to = from + 1; to <= end && to <= from + 2 * kMostJoined; to++) {
        const Run run{from / 2, to % 2 ? to / 2 : to / 2 - 1, from % 2, to % 2, 0};
        if (is_allowed(run)) reach(places, from, to, run);
      }
    }
    Plan found;
    for (int at = end; at > 0 && places[at].is_reached(); at = places[at].from)
      found.insert(found.begin(), places[at].parts.begin(), places[at].parts.end());
    return found;
  }

 private:
  /// 2 i: before block i; 2 i + 1: within it.
  struct Place {
    double cycles = std::numeric_limits<double>::infinity();
    int from = 0, sums = 0;  // sums: parts of an image whose sums there are
    Plan parts;              // that come here
    bool is_reached() const { return cycles < std::numeric_limits<double>::infinity(); }
  };

  bool is_allowed(const Run& run) const {
    const Block &first = blocks_[run.first], &last = blocks_[run.last];
    if (run.last < run.first || run.last - run.first >= (wish_.joined == 1 ? 1 : kMostJoined)) return false;
    if ((run.begins_within && !first.primary) || (run.ends_within && !last.primary)) return false;
    if ((run.begins_within || run.ends_within) && wish_.split == 1) return false;
    for (int i = run.first; i <= run.last; i++) {
      const Block& b = blocks_[i];
      const bool has_inside =
          b.primary && !(i == run.first && run.begins_within) && !(i == run.last && run.ends_within);
      if (has_inside && wish_.split == 2) return false;
      if ((b.linear || (has_inside && b.hidden)) && !run.is_one_block()) return false;
    }
    return !(run.begins_within && run.ends_within && run.is_one_block());
  }

  void reach(std::vector<Place>& places, int from, int to, const Run& run) const {
    const Block& first = blocks_[run.first];
    const int next = run.last + 1, end = static_cast<int>(blocks_.size());
    Extras extras = extras_;
    extras.sums = places[from].sums;
    if (!run.ends_within && next < end && blocks_[next].linear == kOfMeans) extras.squeeze = extras.drops_map = true;
    Place found;
    found.from = from, found.cycles = places[from].cycles;
    const auto add = [&](const Run& one) {
      const auto best = planner_.best(one, extras);
      if (!best) return false;
      // Launches decide before cycles where as few as can be are wanted.
      found.cycles += best->cycles + (wish_.joined == 2 ? 1e15 : 0.);
      found.parts.push_back({one, best->launch, best->cycles});
      return true;
    };
    if (run.begins_within && first.hidden) {
      extras.excite = images_ < kFewImages || !add({run.first, run.first, 0, 0, 1});
    }
    if (!add(run)) return;
    const Launch& l = found.parts.back().launch;
    const bool has_sums = extras.squeeze || (blocks_[run.last].hidden && (run.ends_within || run.is_whole_block()));
    found.sums = has_sums ? l.places() : 0;
    if (found.cycles < places[to].cycles) places[to] = std::move(found);
  }

  const std::vector<Block>& blocks_;
  const int element_;
  const int64_t images_;
  const Device device_;
  const Wish wish_;
  const Extras extras_;
  const Planner planner_;
};

/// The plan for so many images; empty where a block fits the device in no way.
inline Plan make_plan(const std::vector<Block>& blocks, int element, int64_t images, const Device& device,
                      const Extras& extras = {}, const Wish& wish = {}) {
  return ChainPlanner(blocks, element, images, device, wish, extras).plan();
}

}  // namespace ghost::cuda
