// A Ghost module, or a 1x1 convolution, which is one without a cheap operation.
//
// Rows are made in two stages: y1, the primary convolution, and then y2, the cheap operation on y1 with its halo, with
// residual and squeeze in passing. y1 is made in its place in the output, unless something is added to that.
#include "cpu/halves.h"
#include "cpu/program/packer.h"
#include "cpu/program/parse.h"
#include "cpu/program/program_run.h"

namespace ghost {
namespace {

class Ghost final : public Step {
 public:
  explicit Ghost(StepReader& r) {
    const int64_t source = r.slot();
    out = r.slot();
    const int64_t added = r.slot_or_none("residual");
    const bool excited = r.flag("scaled");
    squeeze = r.flag("squeeze");
    r.read_map(*this, source, r.channels("channels"));
    columns = r.channels("primary");
    const int64_t cheap_channels = r.within(0, r.kMostChannels, "made"), out_count = r.channels("out");
    kernel_ = r.odd_kernel(), primary_ = r.layer();
    if (cheap_channels) cheap_ = r.layer();
    if (cheap_channels % columns) r.refuse("a cheap operation whose channels are not a multiple of the primary ones");
    if (out_count > columns + cheap_channels || (cheap_channels ? out_count <= columns : out_count != columns))
      r.refuse("channels kept");
    multiplier_ = cheap_channels / columns, cheap_count_ = out_count - columns;
    out_channels = {columns, cheap_count_};
    if (added >= 0) {
      const int64_t count = r.read_map(*this, added, 0).channels.count();
      if (count != out_count) r.refuse("a residual of other channels");
      residual = 1;
    }
    if (excited && r.excitation != channels) r.refuse("an excitation of other channels");
    scales_rows_ = excited && r.format().scales_rows, scales_weights_ = excited && !scales_rows_;
    r.place_product(primary_, columns, channels);
    if (multiplier_) r.place(cheap_, kernel_ * kernel_ * padded(cheap_count_), cheap_count_);
  }

  bool writes_in_place(const Map& map) const override {  // whole vectors of y1 are read
    return !multiplier_ || residual >= 0 || padded(columns) <= map.pixel;
  }

  void pack(Packer& packer) const override {
    packer.product(primary_, columns, channels);
    if (!multiplier_) return;
    const int64_t all = columns * multiplier_;
    const float* weight = packer.weight({all, 1, kernel_, kernel_});
    const float* scale = packer.epilogue(cheap_, all, cheap_count_);
    packer.taps(cheap_, weight, kernel_ * kernel_, scale, {cheap_count_}, padded(cheap_count_));
  }

  Work work() const override {
    return {channels * columns, cheap_count_ * kernel_ * kernel_, kernel_ / 2, !expands(), true};
  }
  Needs needs(const StepPlan& s) const override {
    Needs n;
    n.zeros = s.w * std::max(by_eight(cheap_count_), out_channels.width());
    n.scratch = scaled_floats();
    if (squeeze) n.sums = 2 * sum_floats(std::max(columns, cheap_count_));
    return n;
  }
  int64_t phases(const StepPlan& s) const override {
    return scales_weights_ + (s.partition == Partition::columns ? 1 : 2 + squeeze);
  }
  bool has_two_stages() const override { return true; }
  int64_t halo() const override { return multiplier_ ? kernel_ / 2 : 0; }
  int64_t unfinished_pixel() const override {
    return (residual < 0 ? 0 : by_eight(columns)) + (expands() ? by_eight(cheap_count_) : 0);
  }
  unsigned once_a_run() const override { return squeeze | expands() << 1 | scales_weights_ << 2; }
  bool makes_output() const override { return residual < 0; }

  /// With rows shared out, those at a border between shares are finished in a second phase, when the neighbour's y1 is
  /// there, and the squeeze is put together in a third.
  void run_phase(ProgramRun& run, int64_t phase, int64_t share) const override {
    if (scales_weights_ && phase-- == 0) {
      const auto [c0, c1] = columns_of(columns, share, run.shares());
      return scale_weights(run, c0, c1);
    }
    const Region g = run.region(*this, share);
    const bool by_columns = run.plan(*this).partition == Partition::columns;
    const int64_t h = run.value(*this).h, w = run.value(*this).w, border = by_columns ? 0 : halo();
    const int64_t from = g.row0 == 0 ? 0 : g.row0 + border, to = g.row1 == h ? h : g.row1 - border;
    const auto task = [&](int64_t y, int64_t end) {
      return RowTask{y, end - y, g.c0, g.c1, share, run.sums_of(*this, share)};
    };
    if (phase == 0) {
      run.clear_sums(*this, share);
      const int64_t height = step_rows(w, g.row1 - g.row0);
      int64_t finished = from;
      for (int64_t y = g.row0, end; y < g.row1; y = end) {
        end = std::min(y + height, g.row1);
        make_rows(run, task(y, end));
        const int64_t ready = end == g.row1 ? to : std::min(to, end - halo());
        if (ready <= finished) continue;
        finish_rows(run, task(finished, ready));
        finished = ready;
      }
      if (squeeze && by_columns) take_means(run, g, share, 1);
    } else if (phase == 1 && from < to) {
      finish_rows(run, task(g.row0, from));
      finish_rows(run, task(to, g.row1));
    } else if (phase == 1) {
      finish_rows(run, task(g.row0, g.row1));
    } else if (share == 0) {
      take_means(run, g, 0, run.shares());
    }
  }

  void start(ProgramRun& run) const override {
    if (scales_weights_) scale_weights(run, 0, columns);
  }

  void make_rows(ProgramRun& run, const RowTask& task) const override {
    const Value x = run.value(sources[0]), y1 = y1_of(run);
    const int64_t pixels = task.count * y1.w, count = task.c1 - task.c0;
    const float* panels = scales_weights_ ? run.scratch(*this) : run.packed(primary_.weight);
    Run runs[kMostRuns];
    int64_t count_of_runs = 0;
    for (const Piece& p : x.channels->pieces()) runs[count_of_runs++] = {p.at, p.count};
    float* to = y1.row(task.y) + task.c0;
    // Past its last channel y1 may run into y2 of the same pixel, which is written later; unless by another share.
    const bool room = y1.is_padded || task.c1 % 8 == 0 || (multiplier_ && count == columns);
    Gemm g{x.row(task.y),
           x.pixel,
           1,
           pixels,
           channels,
           count,
           panels + task.c0 * run.format().depth(channels),
           0,
           run.packed(primary_.bias) + task.c0,
           to,
           y1.pixel,
           room,
           primary_.act == kRelu,
           false,
           runs,
           count_of_runs,
           run.ahead_of(*this, task.y, task.count, task.share),
           scales_rows_ ? run.excitation() : nullptr};
    const Finish finish = run.finish(primary_, task.c0);
    if (primary_.act != kNone && primary_.act != kRelu) g.finish = &finish;
    run.multiply(g);
    if (!expands()) return;
    const Value expanded = expanded_of(run);
    for (int64_t y = task.y; y < task.y + task.count; y++)
      expand_channels(y1.row(y), y1.pixel, expanded.row(y), expanded.pixel, y1.w, cheap_count_, multiplier_);
  }

  void finish_rows(ProgramRun& run, const RowTask& task) const override {
    if (task.count <= 0) return;
    const Kernels& k = run.kernels();
    const Value &to = run.value(*this), y1 = y1_of(run);
    const auto [c0, c1] = cheap_part(task.c0, task.c1);
    const int64_t pixels = task.count * to.w, count = task.c1 - task.c0, cheap_count = c1 - c0;
    float *first = to.row(task.y) + task.c0, *second = to.row(task.y) + to.width_of(columns) + c0;
    if (cheap_count > 0) {
      const Value from = expands() ? expanded_of(run) : y1;
      const float* rows[kMostRows];
      for (int64_t i = 0, some; i < task.count; i += some) {
        some = std::min<int64_t>(task.count - i, kMostRows - 2 * halo());
        run.rows_around(from, task.y + i - halo(), some + 2 * halo(), c0, rows);
        k.depthwise({rows, from.pixel, some, to.w, to.width_of(cheap_count), kernel_, run.packed(cheap_.weight) + c0,
                     padded(cheap_count_), run.packed(cheap_.bias) + c0, second + i * to.w * to.pixel, to.w * to.pixel,
                     to.pixel, cheap_.act == kRelu});
      }
      run.activate(cheap_, c0, second, to.pixel, pixels, to.width_of(cheap_count));
    }
    if (residual >= 0) {
      add_residual(run, y1.row(task.y) + task.c0, y1.pixel, first, task, task.c0, count);
      add_residual(run, second, to.pixel, second, task, columns + c0, cheap_count);
    }
    if (!task.sums) return;
    k.sum(first, to.pixel, pixels, count, task.sums);
    if (cheap_count > 0) k.sum(second, to.pixel, pixels, cheap_count, task.sums + sums_of_half(run));
  }

  void take_means(ProgramRun& run, const Region& g, int64_t share, int64_t shares) const override {
    const Value& of = run.value(*this);
    const auto [c0, c1] = cheap_part(g.c0, g.c1);
    const float* sums = run.sums_of(*this, share);
    run.take_means(sums, shares, g.c1 - g.c0, g.c1 - g.c0, of, run.mean() + g.c0);
    run.take_means(sums + sums_of_half(run), shares, c1 - c0, c1 - c0, of, run.mean() + columns + c0);
  }

 private:
  int64_t kernel_ = 1, multiplier_ = 0;                // multiplier: the cheap operation's channels of each primary one
  int64_t cheap_count_ = 0;                            // channels of the cheap operation that are computed
  bool scales_rows_ = false, scales_weights_ = false;  // by the excitation
  Layer primary_, cheap_;

  bool expands() const { return multiplier_ > 1; }
  int64_t scaled_floats() const { return scales_weights_ ? padded(by_eight(columns) * channels) : 0; }
  int64_t sums_of_half(const ProgramRun& run) const { return run.plan(*this).needs.sums / 2; }

  /// The cheap operation's channels that go with primary ones.
  std::pair<int64_t, int64_t> cheap_part(int64_t c0, int64_t c1) const {
    if (expands()) return {0, cheap_count_};
    return {std::min(c0, cheap_count_), std::min(c1, cheap_count_)};
  }

  Value y1_of(const ProgramRun& run) const {
    Value y1 = run.value(*this);
    if (residual < 0) return y1;
    y1.data = run.scratch(*this) + scaled_floats(), y1.pixel = by_eight(columns), y1.is_padded = true;
    y1.ring = run.plan(*this).unfinished;
    return y1;
  }

  /// y1 with each channel as often as the cheap operation reads it, behind y1 where that is apart.
  Value expanded_of(const ProgramRun& run) const {
    Value v = run.value(*this);
    v.pixel = by_eight(cheap_count_), v.ring = run.plan(*this).unfinished;
    v.data = run.scratch(*this) + scaled_floats() + (residual < 0 ? 0 : v.ring.rows * v.w * by_eight(columns));
    return v;
  }

  /// The excitation into a copy of the primary weights.
  void scale_weights(ProgramRun& run, int64_t c0, int64_t c1) const {
    if (c0 < c1)
      run.kernels().scale_panels(run.packed(primary_.weight) + c0 * channels, run.excitation(), channels, c1 - c0,
                                 run.scratch(*this) + c0 * channels);
  }

  /// to = from + the residual's channels from `channel` on, whichever of its pieces they are in.
  void add_residual(ProgramRun& run, const float* from, int64_t from_pixel, float* to, const RowTask& task,
                    int64_t channel, int64_t count) const {
    const Value &out = run.value(*this), other = run.value(sources[residual]);
    other.channels->each(channel, channel + count, [&](int64_t lane, int64_t i, int64_t some) {
      run.kernels().add(other.row(task.y) + lane, other.pixel, from + i, from_pixel, to + i, out.pixel,
                        task.count * out.w, some);
    });
  }
};

const StepKind kind = step_kind<Ghost>(2);

}  // namespace
}  // namespace ghost
