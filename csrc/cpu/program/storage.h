// Memory for what steps write: which rows are kept, and where they are.
#pragma once
#include <vector>

#include "plan.h"

namespace ghost {

/// Pieces of memory, each in use from one time to another: two of the same time do not overlap.
class Storage {
 public:
  int64_t place(int64_t floats, int64_t first, int64_t last);
  int64_t floats() const { return floats_; }

 private:
  struct Piece {
    int64_t at, end, first, last;
  };
  std::vector<Piece> pieces_;  // by `at`
  int64_t floats_ = 0;
};

/// One past the last step of each run of steps, up to `end`, whose rows may be made a few at a time in turn: no two
/// work in the same scratch, and none needs a whole map.
std::vector<int64_t> ends_of_runs(const Program& p, const std::vector<StepPlan>& plans, int64_t end);

Readers readers_of(const Program& p);

/// Lets the maps that only one run of steps uses keep no more rows than are in use at once; those that are in another
/// map, or hold others, keep all.
void keep_rows_in_use(const Program& p, const std::vector<int64_t>& ends, const Readers& readers,
                      std::vector<StepPlan>& plans);

/// The same of the steps before `end`, in walks that make a share each of the last one's rows.
void keep_rows_of_bands(const Program& p, int64_t end, int64_t shares, const Readers& readers,
                        std::vector<StepPlan>& plans);

/// One past the last step before which threads may go through a band of rows each, and make the rows around it too: all
/// maps but the last are read only by these steps, and none of them needs all rows. 0 where there is no such step.
int64_t end_of_bands(const Program& p, const Readers& readers);

}  // namespace ghost
