// The sizes that a program has for one input: of every step, of the memory it works in, and how its work is shared.
#pragma once
#include <memory>
#include <vector>

#include "cpu/rings.h"
#include "program.h"

namespace ghost {

/// A step that reads a map, as this one among its sources.
struct Reader {
  int64_t step, source;
};
/// The readers of what each step writes, in order.
using Readers = std::vector<std::vector<Reader>>;

/// How a step's output is cut into shares, one a thread.
enum class Partition { rows, columns };

struct StepPlan {
  int64_t in_h, in_w, h, w;  // of the first source, and of the output
  std::vector<Size> sources, like;
  Partition partition;
  int64_t phases;
  Ring out, unfinished;  // unfinished: rows that a step has begun, as far as it keeps them apart
  Needs needs;
};

/// Where things are, in floats. Some images may be under way at once: what one needs only while a step runs, and the
/// large maps of its first steps, are in memory that they take turns at; the rest in memory of its own.
struct Workspace {
  std::vector<int64_t> values, scratch;     // of each step: where its map is made, and what it works in
  int64_t mean, excitation, image_scratch;  // of its own
  int64_t zeros, zero_floats;               // a row outside of a map
  int64_t sums, sums_of_share;
  int64_t share_scratch, scratch_of_share;
  int64_t shared_floats, own_floats;
};

class Storage;

struct Plan {
  int64_t shares;
  std::vector<StepPlan> steps;
  Workspace workspace;
  int64_t first_small_map = 0;         // the first step of small maps, which images go through together
  std::vector<bool> per_image;         // whether what a step writes is in the image's own memory
  std::vector<bool> is_only_returned;  // whether what a step writes is read once, whole, to be returned
  std::vector<int64_t> ends;           // one past the last step of each run whose rows may be made a few at a time
  int64_t features = 0;                // floats of a row of features: the most that any layer has
  double flops = 0;                    // of one image
  // Of the steps before this one each share makes a band of rows, up to that of the last one's output, in memory of its
  // own: `bands` says where and how many rows of each map are kept. 0: all steps are cut one by one.
  int64_t end_of_bands = 0;
  std::shared_ptr<const Plan> bands;

  /// For images of h x w pixels; raises where a map would vanish.
  Plan(const Program& p, int64_t h, int64_t w, int64_t shares);

 private:
  void set_sizes(const Program& p, int64_t h, int64_t w);
  void place(const Program& p, const Readers& readers, const std::vector<int64_t>& time, int64_t begin, int64_t end);
  void place_maps(const Program& p, const Readers& readers, const std::vector<int64_t>& time, int64_t begin,
                  int64_t end, Storage& own, Storage& shared);
  void cut_into_bands(const Program& p, const Readers& readers);
};

constexpr int64_t kMostRows = 64;  // pointers to rows at a time

}  // namespace ghost
