#include "program_run.h"

namespace ghost {
namespace {

constexpr int64_t kAheadFloats = 1 << 18;  // how far ahead weights are fetched

}  // namespace

ProgramRun::ProgramRun(const ProgramCall& call, const Plan& plan, float* shared, float* own)
    : call_(call),
      program_(call.program),
      plan_(plan),
      m_(plan.workspace),
      k_(ghost::kernels()),
      shared_(shared),
      own_(own),
      dense_channels_(program_.outputs.size()),
      values_(program_.steps.size()),
      ahead_(plan.shares) {
  std::fill_n(shared_ + m_.zeros, m_.zero_floats, 0.f);
  for (int64_t i = 0; i < program_.size(); i++) {
    const Step& t = program_[i];
    const StepPlan& s = plan.steps[i];
    float* memory = plan.per_image[i] ? own_ : shared_;
    const int64_t pixel = program_[t.container].out_channels.width();
    if (t.out >= 0) values_[i] = {memory + m_.values[i], s.h, s.w, pixel, &t.out_channels, true, s.out};
  }
  find_places();
}

/// Maps that only are returned may be made in the caller's tensor, where channels lie as it has them.
void ProgramRun::find_places() {
  if (!call_.outs) return;
  const int64_t outputs = static_cast<int64_t>(program_.outputs.size());
  in_place_.assign(outputs, -1);
  for (int64_t i = 0; i < outputs; i++) {
    const Source& source = program_[program_.outputs[i]].sources[0];
    if (plan_.is_only_returned[source.step] && out(i).direct && program_[source.step].writes_in_place(out(i)))
      in_place_[i] = source.step, dense_channels_[i] = source.channels.dense();
  }
}

void ProgramRun::begin(int64_t image) {
  image_ = image;
  std::fill(ahead_.begin(), ahead_.end(), Ahead{});
  if (x().direct && !program_.copies_entry && program_[0].reads_in_place(x())) {
    Value& v = values_[0];
    v.data = reinterpret_cast<float*>(x().at(image, 0)), v.pixel = x().pixel, v.is_padded = false;
  }
  for (size_t i = 0; i < in_place_.size(); i++) {
    if (in_place_[i] < 0) continue;
    Value& v = values_[in_place_[i]];
    const Map& map = call_.outs[i];
    v.data = reinterpret_cast<float*>(map.at(image, 0)), v.pixel = map.pixel;
    v.channels = &dense_channels_[i], v.is_padded = false;
  }
}

/// The work of a walk through an image's steps by one thread.
class ProgramRun::RowExecutor {
 public:
  explicit RowExecutor(ProgramRun& run) : run_(run), progress_(run.program_.steps.size()) {}

  /// Steps whose rows are made in turn, or one that does not make a map.
  void run_steps(int64_t begin, int64_t end) {
    if (run_.program_[begin].out < 0) return run_.run_phase(begin, 0, 0);
    advance_run(run_.program_, run_.plan_.steps, progress_, begin, end, *this);
  }

  /// Rows of one step's output, and of those before it only what they are made of.
  void run_rows(int64_t end, int64_t row0, int64_t row1) {
    progress_ = progress_for_rows(run_.program_, run_.plan_.steps, end, row0, row1);
    advance(run_.program_, run_.plan_.steps, progress_, end - 1, row1, *this);
  }

  void start(int64_t step) {
    const Step& t = run_.program_[step];
    run_.clear_sums(t, 0);
    t.start(run_);
  }
  void make_rows(int64_t step, int64_t y, int64_t count) {
    const Step& t = run_.program_[step];
    t.make_rows(run_, task(t, y, count));
  }
  void finish_rows(int64_t step, int64_t y, int64_t count) {
    const Step& t = run_.program_[step];
    t.finish_rows(run_, task(t, y, count));
  }
  void end(int64_t step) {
    const Step& t = run_.program_[step];
    if (t.squeeze) t.take_means(run_, run_.region(t, 0), 0, 1);
  }

 private:
  ProgramRun& run_;
  std::vector<Progress> progress_;

  RowTask task(const Step& t, int64_t y, int64_t count) const {
    return {y, count, 0, t.columns, 0, run_.sums_of(t, 0)};
  }
};

/// One image after the other up to the small maps, a few rows of several steps in turn while they are in cache; from
/// there on step by step, so that weights which outweigh the maps are read once for all images.
void ProgramRun::run_images(std::vector<ProgramRun>& images) {
  for (ProgramRun& image : images) image.is_only_one_ = images.size() == 1;
  const Plan& plan = images[0].plan_;
  const Program& program = images[0].program_;
  std::vector<RowExecutor> executors(images.begin(), images.end());
  for (RowExecutor& executor : executors) {
    int64_t step = 0;
    for (int64_t end : plan.ends) {
      executor.run_steps(step, end);
      step = end;
    }
  }
  for (int64_t step = plan.first_small_map; step < program.size(); step++)
    if (!program[step].run_images(images[0], static_cast<int64_t>(images.size())))
      for (RowExecutor& executor : executors) executor.run_steps(step, step + 1);
}

void ProgramRun::run_band(const ProgramRun& whole, int64_t share) {
  const int64_t end = whole.plan_.end_of_bands, shares = whole.plan_.shares;
  image_ = whole.image_;
  std::fill(ahead_.begin(), ahead_.end(), Ahead{});
  values_[end - 1] = whole.values_[end - 1];
  const int64_t h = values_[end - 1].h;
  RowExecutor(*this).run_rows(end, h * share / shares, h * (share + 1) / shares);
}

Region ProgramRun::region(const Step& t, int64_t share) const {
  const StepPlan& s = plan(t);
  if (s.partition == Partition::columns && plan_.shares > 1) {
    const auto [c0, c1] = columns_of(t.columns, share, plan_.shares);
    return {0, s.h, c0, c1};
  }
  return {s.h * share / plan_.shares, s.h * (share + 1) / plan_.shares, 0, t.columns};
}

/// The rows of the caller's map that come next, or else the weights after a step's, as at batch 1 all of a net's come
/// from memory: half a line a column.
Ahead* ProgramRun::ahead_of(const Step& t, int64_t y, int64_t count, int64_t share) {
  Ahead& a = ahead_[share];
  const Value& x = values_[t.sources[0].step];
  if (!x.is_padded) {
    const int64_t row = x.w * x.pixel, end = std::min(x.h, y + 2 * count);
    a = {reinterpret_cast<const char*>(x.data + (y + count) * row), reinterpret_cast<const char*>(x.data + end * row),
         kRowsAhead};
    return &a;
  }
  if (!is_only_one_) return nullptr;  // others under way use the same weights
  const float *here = packed(t.packed_end), *end = packed(program_.packed_floats);
  const char* from = reinterpret_cast<const char*>(here) + 64 * share;
  if (a.at < from) a.at = from;
  a.end = reinterpret_cast<const char*>(std::min(end, here + kAheadFloats));
  a.step = 32 / format().columns * plan_.shares;
  return &a;
}

void ProgramRun::take_means(const float* sums, int64_t shares, int64_t channels, int64_t all, const Value& of,
                            float* mean) const {
  for (int64_t c = 0; c < channels; c++) {
    double total = 0;
    for (int64_t i = 0; i < shares; i++) total += sum_of(sums + i * m_.sums_of_share + c, all);
    mean[c] = static_cast<float>(total / static_cast<double>(of.h * of.w));
  }
}

void Step::run_phase(ProgramRun& run, int64_t phase, int64_t share) const {
  const Region g = run.region(*this, share);
  const StepPlan& s = run.plan(*this);
  if (phase > 0) {
    if (share == 0) take_means(run, g, 0, run.shares());
    return;
  }
  run.clear_sums(*this, share);
  if (g.c0 < g.c1)
    for (int64_t y = g.row0, count; y < g.row1; y += count) {
      count = std::min(rows_at_once(s), g.row1 - y);
      make_rows(run, {y, count, g.c0, g.c1, share, run.sums_of(*this, share)});
    }
  if (squeeze && s.partition == Partition::columns) take_means(run, g, share, 1);
}

/// From sums of lanes, of which those between the pieces of a pixel are not of channels.
void Step::take_means(ProgramRun& run, const Region& g, int64_t share, int64_t shares) const {
  const Value& out = run.value(*this);
  out.channels->each([&](int64_t lane, int64_t channel, int64_t count) {
    const int64_t begin = std::max(lane, g.c0), end = std::min(lane + count, g.c1);
    run.take_means(run.sums_of(*this, share) + begin - g.c0, shares, end - begin, g.c1 - g.c0, out,
                   run.mean() + channel + begin - lane);
  });
}

}  // namespace ghost
