// The order in which one thread goes through steps whose rows are made a few at a time, while they are in cache.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "plan.h"

namespace ghost {

/// How many rows of a step's output are begun, and how many done: a Ghost module's y1 is ahead of its y2. A walk may be
/// of some rows alone, up to `until`.
struct Progress {
  int64_t begun = 0, done = 0, until = std::numeric_limits<int64_t>::max();
};

/// The rows that a walk makes of a step's output.
inline int64_t rows_of(const Progress& r, const Sized& s) { return std::min(s.h, r.until); }

/// Rows of y1 on either side that a row of y2 is made of.
inline int64_t halo_of(const Step& t) { return t.made ? t.kernel / 2 : 0; }

/// Makes rows of a step's output until `rows` are done, and before them the rows that they are made of. `Work` is told
/// what to make: an image makes it, and a plan counts the rows that are in use. Rows at once follow each other in
/// memory.
template <class Work>
void advance(const Program& p, const std::vector<Sized>& sizes, std::vector<Progress>& progress, int64_t step,
             int64_t rows, Work& work) {
  const Step& t = p.steps[step];
  const Sized& s = sizes[step];
  Progress& r = progress[step];
  if (r.done >= rows) return;
  const int64_t most = rows_at_once(t, s);
  if (r.begun == 0) work.start(step);
  while (r.done < rows) {
    if (t.kind == Kind::load) {
      work.load(step);
      r.begun = r.done = s.h;
    } else if (t.kind == Kind::ghost) {
      const int64_t halo = halo_of(t), end = std::min({s.h, r.begun + most, rows_of(r, s) + halo});
      const Ring &in = sizes[t.in].out, &y1 = t.residual >= 0 ? s.y1 : s.out;
      advance(p, sizes, progress, t.in, end, work);
      for (int64_t count; r.begun < end; r.begun += count) {
        count = std::min({end - r.begun, in.room(r.begun), y1.room(r.begun)});
        work.product(step, r.begun, count);
      }
      const int64_t ready = std::min(rows_of(r, s), end == s.h ? end : end - halo);
      if (ready <= r.done) continue;
      if (t.residual >= 0) advance(p, sizes, progress, t.residual, ready, work);
      for (int64_t count; r.done < ready; r.done += count) {
        count = std::min({ready - r.done, s.out.room(r.done), y1.room(r.done)});
        if (t.residual >= 0) count = std::min(count, sizes[t.residual].out.room(r.done));
        work.finish(step, r.done, count);
      }
    } else {
      const int64_t count = std::min({most, rows_of(r, s) - r.done, s.out.room(r.done)});
      r.begun = r.done + count;
      if (t.kind == Kind::depthwise)
        advance(p, sizes, progress, t.in, std::min(s.in_h, (r.begun - 1) * t.stride + t.kernel - t.kernel / 2), work);
      work.rows(step, r.done, count);
      r.done = r.begun;
    }
  }
  if (r.done == s.h) work.end(step);
}

/// Where a walk through the steps before `end` begins and ends that makes rows [row0, row1) of the last one's output.
inline std::vector<Progress> walk_of_rows(const Program& p, const std::vector<Sized>& sizes, int64_t end, int64_t row0,
                                          int64_t row1) {
  std::vector<Progress> progress(p.steps.size());
  for (int64_t i = 0; i < end - 1; i++) progress[i] = {sizes[i].h, sizes[i].h, 0};
  progress[end - 1] = {row0, row0, row1};
  const auto read = [&](int64_t step, int64_t from, int64_t to) {
    if (step < 0) return;
    Progress& r = progress[step];
    r.begun = r.done = std::min(r.done, std::max<int64_t>(0, from));
    r.until = std::max(r.until, std::min(sizes[step].h, to));
  };
  for (int64_t i = end - 1; i >= 0; i--) {  // readers come after what they read
    const Step& t = p.steps[i];
    Progress& r = progress[i];
    if (t.kind == Kind::ghost) {
      read(t.residual, r.done, r.until);
      r.begun = std::max<int64_t>(0, r.done - halo_of(t));
      read(t.in, r.begun, r.until + halo_of(t));
    } else if (t.kind == Kind::depthwise) {
      read(t.in, r.done * t.stride - t.kernel / 2, (r.until - 1) * t.stride + t.kernel - t.kernel / 2);
    }
  }
  return progress;
}

/// All rows of a run of steps.
template <class Work>
void advance_run(const Program& p, const std::vector<Sized>& sizes, std::vector<Progress>& progress, int64_t begin,
                 int64_t end, Work& work) {
  advance(p, sizes, progress, end - 1, sizes[end - 1].h, work);
  for (int64_t step = begin; step < end - 1; step++) advance(p, sizes, progress, step, sizes[step].h, work);
}

}  // namespace ghost
