#include "storage.h"

#include <algorithm>
#include <array>

#include "walk.h"

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

std::vector<int64_t> ends_of_runs(const Program& p, int64_t end) {
  std::vector<int64_t> ends;
  std::array<bool, 3> taken{};
  const auto close = [&](int64_t at) {
    if (at > 0 && (ends.empty() || ends.back() < at)) ends.push_back(at);
    taken = {};
  };
  for (int64_t i = 0; i < end; i++) {
    const Step& t = p.steps[i];
    if (t.out < 0) {
      close(i);
      close(i + 1);
      continue;
    }
    const std::array<bool, 3> wanted{t.multiplier() > 1, t.scales(), t.squeeze};  // expanded, scaled, sums
    for (size_t k = 0; k < wanted.size(); k++)
      if (wanted[k] && taken[k]) close(i);
    for (size_t k = 0; k < wanted.size(); k++) taken[k] = taken[k] || wanted[k];
  }
  close(end);
  return ends;
}

Readers readers_of(const Program& p) {
  Readers readers(p.steps.size());
  for (size_t i = 0; i < p.steps.size(); i++)
    for (int64_t source : {p.steps[i].in, p.steps[i].residual})
      if (source >= 0) readers[source].push_back(static_cast<int64_t>(i));
  return readers;
}

namespace {

/// A walk through a run of steps that makes nothing: it finds how many rows of each map are in use at once.
class Counter {
 public:
  Counter(const Program& p, const std::vector<Sized>& sizes, const Readers& readers)
      : p_(p), sizes_(sizes), readers_(readers), progress_(p.steps.size()), out(p.steps.size()), y1(p.steps.size()) {}

  void walk(int64_t begin, int64_t end) {
    for (int64_t i = 0; i < begin; i++) progress_[i] = {sizes_[i].h, sizes_[i].h};  // of runs before
    advance_run(p_, sizes_, progress_, begin, end, *this);
  }
  void walk_rows(int64_t end, int64_t row0, int64_t row1) {
    progress_ = walk_of_rows(p_, sizes_, end, row0, row1);
    advance(p_, sizes_, progress_, end - 1, row1, *this);
  }

  void start(int64_t) {}
  void end(int64_t) {}
  void load(int64_t step) { written(step, sizes_[step].h); }
  void rows(int64_t step, int64_t y, int64_t count) { written(step, y + count); }
  void finish(int64_t step, int64_t y, int64_t count) { written(step, y + count); }
  void product(int64_t step, int64_t y, int64_t count) {
    if (p_.steps[step].residual < 0)
      written(step, y + count);
    else
      y1[step] = std::max(y1[step], y + count - first_of_y1(step));
  }

 private:
  const Program& p_;
  const std::vector<Sized>& sizes_;
  const Readers& readers_;
  std::vector<Progress> progress_;

  int64_t first_of_y1(int64_t step) const {
    return std::max<int64_t>(0, progress_[step].done - p_.steps[step].kernel / 2);
  }

  /// The first row that `reader` still needs of what `step` writes.
  int64_t first_of(int64_t step, int64_t reader) const {
    const Step& t = p_.steps[reader];
    const Progress& r = progress_[reader];
    if (r.done >= rows_of(r, sizes_[reader])) return sizes_[step].h;
    if (t.kind == Kind::depthwise) return std::max<int64_t>(0, r.done * t.stride - t.kernel / 2);
    return t.residual == step ? r.done : r.begun;
  }

  void written(int64_t step, int64_t end) {
    int64_t first = end;
    if (p_.steps[step].kind == Kind::ghost && p_.steps[step].residual < 0) first = std::min(first, first_of_y1(step));
    for (int64_t reader : readers_[step]) first = std::min(first, first_of(step, reader));
    out[step] = std::max(out[step], end - first);
  }

 public:
  std::vector<int64_t> out, y1;  // the most rows in use at once
};

/// Rows of the maps of steps [begin, end) that are enough for `walk(counter)`, of which each walks once.
template <class Walk>
void keep_rows(const Program& p, int64_t begin, int64_t end, const Readers& readers, std::vector<Sized>& sizes,
               const Walk& walk) {
  const auto inside = [&](int64_t step) {
    if (p.steps[step].kind == Kind::load) return false;
    return !readers[step].empty() && readers[step].back() < end;
  };
  // Where a map begins again, fewer rows are made at once: counted again until they fit.
  for (bool first = true, grown = p.steps[begin].out >= 0; grown; first = false) {
    Counter count(p, sizes, readers);
    walk(count);
    grown = false;
    const auto keep = [&](Ring& ring, int64_t step, int64_t rows) {
      const Sized& s = sizes[step];
      if (!first && rows <= ring.rows) return;
      const int64_t whole = rows_at_once(p.steps[step], s);
      rows = (rows + whole - 1) / whole * whole;
      const bool all = rows >= s.h;
      ring = {all ? s.h : rows, all || p.steps[step].kind != Kind::ghost ? 0 : p.steps[step].kernel / 2};
      grown = true;
    };
    for (int64_t i = begin; i < end; i++) {
      if (inside(i)) keep(sizes[i].out, i, count.out[i]);
      if (p.steps[i].residual >= 0) keep(sizes[i].y1, i, count.y1[i]);
    }
  }
}

}  // namespace

void keep_rows_in_use(const Program& p, const std::vector<int64_t>& ends, const Readers& readers,
                      std::vector<Sized>& sizes) {
  int64_t begin = 0;
  for (const int64_t end : ends) {
    keep_rows(p, begin, end, readers, sizes, [&](Counter& count) { count.walk(begin, end); });
    begin = end;
  }
}

void keep_rows_of_bands(const Program& p, int64_t end, int64_t shares, const Readers& readers,
                        std::vector<Sized>& sizes) {
  const int64_t h = sizes[end - 1].h;
  keep_rows(p, 0, end, readers, sizes, [&](Counter& count) {
    for (int64_t i = 0; i < shares; i++) count.walk_rows(end, h * i / shares, h * (i + 1) / shares);
  });
}

int64_t end_of_bands(const Program& p, const Readers& readers) {
  if (p.steps[0].kind != Kind::conv) return 0;
  int64_t found = 0, read_until = 0;  // one past the last step that reads what steps so far write
  for (int64_t i = 0; i < static_cast<int64_t>(p.steps.size()); i++) {
    const Step& t = p.steps[i];
    if (t.out < 0 || t.squeeze || t.scaled || t.multiplier() > 1) break;
    if (read_until <= i + 1) found = i + 1;
    if (!readers[i].empty()) read_until = std::max(read_until, readers[i].back() + 1);
  }
  return found > 1 ? found : 0;
}

}  // namespace ghost
