// The order in which one thread goes through steps whose rows are made a few at a time, while they are in cache.
#pragma once
#include <algorithm>
#include <vector>

#include "plan.h"

namespace ghost {

/// How many rows of a step's output are begun, and how many done: a Ghost module's y1 is ahead of its y2.
struct Progress {
  int64_t begun = 0, done = 0;
};

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
      const int64_t end = std::min(s.h, r.begun + most), halo = t.made ? t.kernel / 2 : 0;
      const Ring &in = sizes[t.in].out, &y1 = t.residual >= 0 ? s.y1 : s.out;
      advance(p, sizes, progress, t.in, end, work);
      for (int64_t count; r.begun < end; r.begun += count) {
        count = std::min({end - r.begun, in.room(r.begun), y1.room(r.begun)});
        work.product(step, r.begun, count);
      }
      const int64_t ready = end == s.h ? end : end - halo;
      if (ready <= r.done) continue;
      if (t.residual >= 0) advance(p, sizes, progress, t.residual, ready, work);
      for (int64_t count; r.done < ready; r.done += count) {
        count = std::min({ready - r.done, s.out.room(r.done), y1.room(r.done)});
        if (t.residual >= 0) count = std::min(count, sizes[t.residual].out.room(r.done));
        work.finish(step, r.done, count);
      }
    } else {
      const int64_t count = std::min({most, s.h - r.done, s.out.room(r.done)});
      r.begun = r.done + count;
      if (t.kind == Kind::depthwise)
        advance(p, sizes, progress, t.in, std::min(s.in_h, (r.begun - 1) * t.stride + t.kernel - t.kernel / 2), work);
      work.rows(step, r.done, count);
      r.done = r.begun;
    }
  }
  if (r.done == s.h) work.end(step);
}

/// All rows of a run of steps.
template <class Work>
void advance_run(const Program& p, const std::vector<Sized>& sizes, std::vector<Progress>& progress, int64_t begin,
                 int64_t end, Work& work) {
  advance(p, sizes, progress, end - 1, sizes[end - 1].h, work);
  for (int64_t step = begin; step < end - 1; step++) advance(p, sizes, progress, step, sizes[step].h, work);
}

}  // namespace ghost
