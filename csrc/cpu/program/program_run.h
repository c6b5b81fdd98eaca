// A program at work on images: memory for one image, and the ways in which threads go through the steps.
#pragma once
#include <utility>

#include "cpu/maps.h"
#include "row_schedule.h"

namespace ghost {

constexpr int64_t kShareFlops = 1 << 19;  // less than this is not worth a thread

/// A map inside, or a view of some of its channels: NHWC float32, rows dense. Where it is in a workspace its pieces are
/// padded to multiples of 8; a caller's map is not.
struct Value {
  float* data = nullptr;
  int64_t h = 0, w = 0, pixel = 0;
  const Channels* channels = nullptr;
  bool is_padded = true;

  Ring ring;

  float* row(int64_t y) const { return data + ring.place(y) * w * pixel; }
  /// Lanes [c0, c1) of a pixel, as far as they may be read.
  int64_t lanes(int64_t c0, int64_t c1) const { return (is_padded ? c1 : std::min(c1, channels->count())) - c0; }
  int64_t width_of(int64_t channels) const { return is_padded ? by_eight(channels) : channels; }
};

/// What is handed to every image of a call.
struct ProgramCall {
  const Program& program;
  const float* packed;
  const std::vector<const float*>& raw_weights;
  const Map& x;
  const Map* outs;  // where maps go; null where the program returns features
  float* features;  // [steps that begin features][images][features_row]
  int64_t features_row, images;
};

/// Columns for share i of `shares`, whole panels each.
inline std::pair<int64_t, int64_t> columns_of(int64_t n, int64_t i, int64_t shares) {
  const int64_t panels = padded(n) / kPanel;
  return {std::min(n, panels * i / shares * kPanel), std::min(n, panels * (i + 1) / shares * kPanel)};
}

/// One image on its way through a program, up to the features, and what the steps ask of it.
class ProgramRun {
 public:
  /// `shared` and `own` are memory of the plan's floats; images that take turns have the same `shared`.
  ProgramRun(const ProgramCall& call, const Plan& plan, float* shared, float* own);

  /// Starts on an image; called by one thread.
  void begin(int64_t image);
  /// Where the plan has bands, this is an image of theirs: makes the rows of one share of the last step before
  /// `plan.end_of_bands` into the map of `whole`, whose plan that is.
  void run_band(const ProgramRun& whole, int64_t share);
  /// The step's phase for one share. Phases of all steps are run in order, all shares of one before the next.
  void run_phase(int64_t step, int64_t phase, int64_t share) { program_[step].run_phase(*this, phase, share); }
  /// Images on one thread, whose memory of their own is plan.workspace.own_floats apart; the plan has one share.
  static void run_images(std::vector<ProgramRun>& images);

  // What it works on.
  const Kernels& kernels() const { return k_; }
  const WeightFormat& format() const { return *program_.format; }
  const Map& x() const { return call_.x; }
  const Map& out(int64_t output) const { return call_.outs[output]; }
  int64_t image() const { return image_; }
  int64_t shares() const { return plan_.shares; }
  const StepPlan& plan(const Step& t) const { return plan_.steps[t.index]; }
  const Value& value(const Step& t) const { return values_[t.index]; }
  Value value(const Source& source) const {
    Value v = values_[source.step];
    if (v.is_padded) v.data += source.lane, v.channels = &source.channels;
    return v;
  }
  /// Whether the output's map was made in its place.
  bool is_written_in_place(int64_t output) const { return in_place_[output] >= 0; }
  const float* packed(int64_t at) const { return call_.packed + at; }
  const float* raw_weight(const Layer& l) const { return call_.raw_weights[l.raw]; }
  /// The row of features that a step begins.
  float* features(const Step& t) const {
    return call_.features + (t.features_place * call_.images + image_) * call_.features_row;
  }
  Region region(const Step& t, int64_t share) const;

  // Memory. What images have of their own is image_row() floats further on for the next one.
  int64_t image_row() const { return m_.own_floats; }
  float* mean() const { return own_ + m_.mean; }
  float* excitation() const { return own_ + m_.excitation; }
  float* image_scratch() const { return own_ + m_.image_scratch; }
  float* scratch(const Step& t) const { return shared_ + m_.scratch[t.index]; }
  float* share_scratch(int64_t share) const { return shared_ + m_.share_scratch + share * m_.scratch_of_share; }
  const float* zeros() const { return shared_ + m_.zeros; }
  float* sums_of(const Step& t, int64_t share) const {
    return t.squeeze ? shared_ + m_.sums + share * m_.sums_of_share : nullptr;
  }
  void clear_sums(const Step& t, int64_t share) const {
    if (t.squeeze) std::fill_n(sums_of(t, share), m_.sums_of_share, 0.f);
  }

  // Parts of steps.
  void multiply(const Gemm& g) const { (k_.*format().gemm)(g); }
  /// The layer's activation, from its channel c0 on, as the end of a product.
  Finish finish(const Layer& l, int64_t c0) const {
    return {{nullptr, nullptr, l.act, l.packs_slopes() ? packed(l.slopes) + c0 : nullptr}, k_.affine};
  }
  /// The layer's activation, from its channel c0 on, where it is not in the kernels.
  void activate(const Layer& l, int64_t c0, float* data, int64_t pixel, int64_t pixels, int64_t channels) const {
    if (l.act == kNone || l.act == kRelu) return;
    k_.affine(data, pixel, {nullptr, nullptr, l.act, packed(l.slopes) + c0}, data, pixel, pixels, channels);
  }
  /// Pointers to `count` rows of a map from row y on, which may be outside of it.
  void rows_around(const Value& map, int64_t y, int64_t count, int64_t c0, const float** rows) const {
    for (int64_t r = y; r < y + count; r++) *rows++ = r < 0 || r >= map.h ? zeros() : map.row(r) + c0;
  }
  /// What products fetch on the way to rows [y, y + count).
  Ahead* ahead_of(const Step& t, int64_t y, int64_t count, int64_t share);
  /// Means over the pixels of `of` of some channels, from the sums of some shares, which are sums of `all` channels.
  void take_means(const float* sums, int64_t shares, int64_t channels, int64_t all, const Value& of, float* mean) const;

 private:
  class RowExecutor;

  void find_places();

  const ProgramCall& call_;
  const Program& program_;
  const Plan& plan_;
  const Workspace& m_;
  const Kernels& k_;
  float *shared_, *own_;
  int64_t image_ = 0;
  bool is_only_one_ = true;               // no other image is under way with it
  std::vector<int64_t> in_place_;         // of each output, the step that writes into it itself; -1: none
  std::vector<Channels> dense_channels_;  // of each output
  std::vector<Value> values_;             // what each step writes
  std::vector<Ahead> ahead_;              // of each share
};

/// Rows of features of all images, which a step makes others of.
struct FeatureRows {
  const Program& program;
  const float* packed;
  int64_t images, row;  // floats from one to the next
  const float* from;
  float* to;
};

}  // namespace ghost
