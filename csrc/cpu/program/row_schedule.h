// The order in which one thread goes through steps whose rows are made a few at a time, while they are in cache.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "plan.h"

namespace ghost {

/// How many rows of a step's output are begun, and how many done: a step of two stages begins rows ahead of those that
/// it finishes. A walk may make only some rows, up to `until`.
struct Progress {
  int64_t begun = 0, done = 0, until = std::numeric_limits<int64_t>::max();
};

/// The rows that a walk makes of a step's output.
inline int64_t rows_of(const Progress& r, const StepPlan& s) { return std::min(s.h, r.until); }

/// Makes rows of a step's output until `rows` are done, and before them the rows that they are made of. `Work` is told
/// what to make: a run makes it, and a plan counts the rows that are in use. Rows at once follow each other in memory.
template <class Work>
void advance(const Program& p, const std::vector<StepPlan>& plans, std::vector<Progress>& progress, int64_t step,
             int64_t rows, Work& work) {
  const Step& t = p[step];
  const StepPlan& s = plans[step];
  Progress& r = progress[step];
  if (r.done >= rows) return;
  const int64_t most = t.rows_at_once(s), halo = t.halo();
  const auto advance_sources = [&](int64_t end) {
    for (size_t i = 0; i < t.sources.size(); i++) {
      if (static_cast<int64_t>(i) == t.residual) continue;
      const int64_t wanted = std::min(s.sources[i].h, t.source_rows(s, static_cast<int64_t>(i), 0, end).end);
      advance(p, plans, progress, t.sources[i].step, wanted, work);
    }
  };
  if (r.begun == 0) work.start(step);
  while (r.done < rows) {
    if (!t.has_two_stages()) {
      const int64_t count = std::min({most, rows_of(r, s) - r.done, s.out.room(r.done)});
      advance_sources(r.done + count);
      work.make_rows(step, r.done, count);
      r.begun = r.done += count;
      continue;
    }
    const int64_t end = std::min({s.h, r.begun + most, rows_of(r, s) + halo});
    advance_sources(end);
    const Ring& ahead = t.makes_output() ? s.out : s.unfinished;
    for (int64_t count; r.begun < end; r.begun += count) {
      count = std::min({end - r.begun, plans[t.sources[0].step].out.room(r.begun), ahead.room(r.begun)});
      work.make_rows(step, r.begun, count);
    }
    const int64_t ready = std::min(rows_of(r, s), end == s.h ? end : end - halo);
    if (ready <= r.done) continue;
    const int64_t residual = t.residual < 0 ? -1 : t.sources[t.residual].step;
    if (residual >= 0) advance(p, plans, progress, residual, ready, work);
    for (int64_t count; r.done < ready; r.done += count) {
      count = std::min({ready - r.done, s.out.room(r.done), ahead.room(r.done)});
      if (residual >= 0) count = std::min(count, plans[residual].out.room(r.done));
      work.finish_rows(step, r.done, count);
    }
  }
  if (r.done == s.h) work.end(step);
}

/// Where a walk through the steps before `end` begins and ends that makes rows [row0, row1) of the last one's output.
inline std::vector<Progress> progress_for_rows(const Program& p, const std::vector<StepPlan>& plans, int64_t end,
                                               int64_t row0, int64_t row1) {
  std::vector<Progress> progress(p.steps.size());
  for (int64_t i = 0; i < end - 1; i++) progress[i] = {plans[i].h, plans[i].h, 0};
  progress[end - 1] = {row0, row0, row1};
  const auto read = [&](int64_t step, const RowRange& rows) {
    Progress& r = progress[step];
    r.begun = r.done = std::min(r.done, std::max<int64_t>(0, rows.first));
    r.until = std::max(r.until, std::min(plans[step].h, rows.end));
  };
  for (int64_t i = end - 1; i >= 0; i--) {  // readers come after what they read
    const Step& t = p[i];
    Progress& r = progress[i];
    r.begun = std::max<int64_t>(0, r.done - t.halo());
    for (size_t j = 0; j < t.sources.size(); j++) {
      const bool added = static_cast<int64_t>(j) == t.residual;
      read(t.sources[j].step, added ? RowRange{r.done, r.until}
                                    : t.source_rows(plans[i], static_cast<int64_t>(j), r.begun, r.until + t.halo()));
    }
  }
  return progress;
}

/// All rows of a run of steps.
template <class Work>
void advance_run(const Program& p, const std::vector<StepPlan>& plans, std::vector<Progress>& progress, int64_t begin,
                 int64_t end, Work& work) {
  advance(p, plans, progress, end - 1, plans[end - 1].h, work);
  for (int64_t step = begin; step < end - 1; step++) advance(p, plans, progress, step, plans[step].h, work);
}

}  // namespace ghost
