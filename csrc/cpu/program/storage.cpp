#include "storage.h"

#include <algorithm>

#include "row_schedule.h"

namespace ghost {

int64_t Storage::place(int64_t floats, int64_t first, int64_t last) {
  const int64_t size = padded(floats) + 2 * kPad;  // whole vectors are read past a map's last pixel
  int64_t at = 0;
  for (const Piece& p : pieces_) {
    if (p.last < first || last < p.first) continue;
    if (p.at >= at + size) break;
    at = std::max(at, p.end);
  }
  const Piece piece{at, at + size, first, last};
  pieces_.insert(std::upper_bound(pieces_.begin(), pieces_.end(), piece,
                                  [](const Piece& a, const Piece& b) { return a.at < b.at; }),
                 piece);
  floats_ = std::max(floats_, piece.end);
  return at;
}

std::vector<int64_t> ends_of_runs(const Program& p, const std::vector<StepPlan>& plans, int64_t end) {
  std::vector<int64_t> ends;
  unsigned taken = 0;
  const auto close = [&](int64_t at) {
    if (at > 0 && (ends.empty() || ends.back() < at)) ends.push_back(at);
    taken = 0;
  };
  for (int64_t i = 0; i < end; i++) {
    if (p[i].out < 0 || p[i].is_apart(plans[i])) {
      close(i);
      close(i + 1);
      continue;
    }
    const unsigned wanted = p[i].once_a_run();
    if (wanted & taken) close(i);
    taken |= wanted;
  }
  close(end);
  return ends;
}

Readers readers_of(const Program& p) {
  Readers readers(p.steps.size());
  for (int64_t i = 0; i < p.size(); i++)
    for (size_t j = 0; j < p[i].sources.size(); j++)
      readers[p[i].sources[j].step].push_back({i, static_cast<int64_t>(j)});
  return readers;
}

namespace {

/// A walk through a run of steps that makes nothing: it finds how many rows of each map are in use at once.
class RowCounter {
 public:
  RowCounter(const Program& p, const std::vector<StepPlan>& plans, const Readers& readers)
      : out(p.steps.size()), unfinished(out), p_(p), plans_(plans), readers_(readers), progress_(p.steps.size()) {}

  void walk(int64_t begin, int64_t end) {
    for (int64_t i = 0; i < begin; i++) progress_[i] = {plans_[i].h, plans_[i].h};  // of runs before
    advance_run(p_, plans_, progress_, begin, end, *this);
  }
  void walk_rows(int64_t end, int64_t row0, int64_t row1) {
    progress_ = progress_for_rows(p_, plans_, end, row0, row1);
    advance(p_, plans_, progress_, end - 1, row1, *this);
  }

  void start(int64_t) {}
  void end(int64_t) {}
  void make_rows(int64_t step, int64_t y, int64_t count) {
    if (p_[step].makes_output()) count_written(step, y + count);
    unfinished[step] = std::max(unfinished[step], y + count - first_unfinished(step));
  }
  void finish_rows(int64_t step, int64_t y, int64_t count) { count_written(step, y + count); }

  std::vector<int64_t> out, unfinished;  // the most rows in use at once

 private:
  const Program& p_;
  const std::vector<StepPlan>& plans_;
  const Readers& readers_;
  std::vector<Progress> progress_;

  int64_t first_unfinished(int64_t step) const { return std::max<int64_t>(0, progress_[step].done - p_[step].halo()); }

  /// The first row that `reader` still needs of what `step` writes.
  int64_t first_needed(int64_t step, const Reader& reader) const {
    const Step& t = p_[reader.step];
    const StepPlan& s = plans_[reader.step];
    const Progress& r = progress_[reader.step];
    if (r.done >= rows_of(r, s)) return plans_[step].h;
    if (t.residual == reader.source) return r.done;
    return std::max<int64_t>(0, t.source_rows(s, reader.source, r.begun, r.begun + 1).first);
  }

  void count_written(int64_t step, int64_t end) {
    int64_t first = end;
    if (p_[step].has_two_stages() && p_[step].makes_output()) first = std::min(first, first_unfinished(step));
    for (const Reader& reader : readers_[step]) first = std::min(first, first_needed(step, reader));
    out[step] = std::max(out[step], end - first);
  }
};

/// Rows of the maps of steps [begin, end) that are enough for `walk(counter)`, which goes through them.
template <class Walk>
void keep_rows(const Program& p, int64_t begin, int64_t end, const Readers& readers, std::vector<StepPlan>& plans,
               const Walk& walk) {
  std::vector<bool> shared(p.steps.size());  // whether others are in the same map
  for (int64_t i = begin; i < end; i++)
    if (p[i].container != i) shared[i] = shared[p[i].container] = true;
  // Where a map begins again, fewer rows are made at once: counted again until they fit.
  for (bool first = true, grown = p[begin].out >= 0; grown; first = false) {
    RowCounter count(p, plans, readers);
    walk(count);
    grown = false;
    const auto keep = [&](Ring& ring, int64_t step, int64_t rows) {
      const StepPlan& s = plans[step];
      if (!first && rows <= ring.rows) return;
      const int64_t whole = p[step].rows_at_once(s);
      rows = (std::max<int64_t>(rows, 1) + whole - 1) / whole * whole;  // a map that nothing reads is still computed
      ring = rows < s.h ? Ring{rows, p[step].halo()} : Ring{s.h, 0};
      grown = true;
    };
    for (int64_t i = begin; i < end; i++) {
      if (!shared[i] && !readers[i].empty() && readers[i].back().step < end) keep(plans[i].out, i, count.out[i]);
      if (p[i].unfinished_pixel()) keep(plans[i].unfinished, i, count.unfinished[i]);
    }
  }
}

}  // namespace

void keep_rows_in_use(const Program& p, const std::vector<int64_t>& ends, const Readers& readers,
                      std::vector<StepPlan>& plans) {
  int64_t begin = 0;
  for (const int64_t end : ends) {
    keep_rows(p, begin, end, readers, plans, [&](RowCounter& count) { count.walk(begin, end); });
    begin = end;
  }
}

void keep_rows_of_bands(const Program& p, int64_t end, int64_t shares, const Readers& readers,
                        std::vector<StepPlan>& plans) {
  const int64_t h = plans[end - 1].h;
  keep_rows(p, 0, end, readers, plans, [&](RowCounter& count) {
    for (int64_t i = 0; i < shares; i++) count.walk_rows(end, h * i / shares, h * (i + 1) / shares);
  });
}

int64_t end_of_bands(const Program& p, const Readers& readers) {
  if (p[0].makes_all_rows_at_once()) return 0;
  int64_t found = 0, read_until = 0;  // one past the last step that reads what steps so far write
  for (int64_t i = 0; i < p.size(); i++) {
    if (p[i].out < 0 || p[i].squeeze) break;
    // What the last step makes ahead of the rows that it finishes must not be in its output, where others' rows are.
    if (read_until <= i + 1 && !(p[i].halo() && p[i].makes_output())) found = i + 1;
    if (!readers[i].empty()) read_until = std::max(read_until, readers[i].back().step + 1);
  }
  return found > 1 ? found : 0;
}

}  // namespace ghost
