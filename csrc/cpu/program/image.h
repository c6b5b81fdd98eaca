// One image on its way through a program: the steps up to the features, share by share.
#pragma once
#include <utility>

#include "cpu/maps.h"
#include "walk.h"

namespace ghost {

/// A map inside: NHWC float32, rows dense. Where it lies in a workspace its halves are padded to multiples of 8; a
/// caller's map is not.
struct Value {
  float* data = nullptr;
  int64_t h = 0, w = 0, pixel = 0, second_at = 0;
  Channels channels;
  bool is_padded = true;

  Ring ring;

  float* row(int64_t y) const { return data + ring.place(y) * w * pixel; }
  int64_t width_of(int64_t channels) const { return is_padded ? by_eight(channels) : channels; }
};

/// Columns for share i of `shares`, whole panels each.
inline std::pair<int64_t, int64_t> columns_of(int64_t n, int64_t i, int64_t shares) {
  const int64_t panels = padded(n) / kPanel;
  return {std::min(n, panels * i / shares * kPanel), std::min(n, panels * (i + 1) / shares * kPanel)};
}

class Image {
 public:
  /// `out` is where a map goes; null where the program returns features. `shared` and `own` are memory of the plan's
  /// floats; images that take turns have the same `shared`.
  Image(const Program& p, const Plan& plan, const float* packed, const std::vector<RawLayers>& raw, const Map& x,
        const Map* out, float* features, int64_t features_row, float* shared, float* own);

  /// Starts on an image; one thread alone.
  void begin(int64_t image);
  /// Where the plan has bands, this is an image of theirs: makes the rows of one share of the last step before
  /// `plan.end_of_bands` into the map of `whole`, whose plan that is.
  void run_band(const Image& whole, int64_t share);
  /// The step's phase for one share. Phases of all steps are run in order, all shares of one before the next.
  void run(int64_t step, int64_t phase, int64_t share);
  /// Images on one thread, whose memory of their own lies plan.workspace.own_floats apart; the plan has one share.
  static void run_alone(std::vector<Image>& images);

 private:
  struct Part {
    int64_t row0, row1, c0, c1;
  };
  class Maker;

  Part part(int64_t step, int64_t share) const;
  Part kept(const Step& t, const Part& p) const;
  void load(int64_t step, const Part& p);
  void conv(int64_t step, const Part& p, int64_t share);
  void ghost(const Step& t, int64_t step, int64_t phase, int64_t share);
  Value y1_of(int64_t step) const;
  void scale(const Step& t, const Part& p);
  Ahead* ahead_of(const Step& t, int64_t y, int64_t count, int64_t share);
  void make_y1(const Step& t, const Value& y1, int64_t y, int64_t count, const Part& p, int64_t share);
  void finish(const Step& t, const Value& y1, const Value& out, int64_t y, int64_t count, const Part& p, float* sums);
  void add_residual(const Value& residual, const float* from, int64_t from_pixel, float* to, const Value& out,
                    int64_t y, int64_t count, int64_t channel, int64_t channels);
  void depthwise(const Step& t, int64_t step, int64_t phase, int64_t share);
  void depthwise_rows(const Step& t, int64_t step, int64_t y, int64_t count, const Part& p, float* sums);
  void squeeze(const Step& t, int64_t step, const Part& p, int64_t share, int64_t shares);
  void excite(const Step& t, int64_t phase, int64_t share, int64_t images);
  void store(int64_t share);
  void activate(const Conv& c, const float* slopes, float* data, int64_t pixel, int64_t pixels, int64_t channels) const;
  void product(const Step& t, const Gemm& p) const { (t.pairs ? k_.gemm_bf16 : k_.gemm)(p); }
  void product_rows(const Step& t, const float* a, int64_t k, int64_t n, const float* panels, const float* bias,
                    const Conv& c, const float* slopes, float* out, int64_t share, int64_t images) const;
  void layer(const float* a, int64_t k, int64_t n, const float* weight, const float* bias, const Conv& c,
             const float* slopes, float* out, int64_t share) const;
  void means(const float* sums, int64_t shares, int64_t channels, int64_t all, const Value& of, float* mean) const;
  float* sums_of(int64_t share) const { return shared_ + m_.sums + share * m_.sums_of_share; }

  const Program& program_;
  const Plan& plan_;
  const Workspace& m_;
  const Kernels& k_;
  const float* packed_;
  const std::vector<RawLayers>& raw_;
  const Map &x_, *out_;
  float* features_;
  int64_t features_row_;
  float *shared_, *own_;
  int64_t image_ = 0;
  bool alone_ = true;          // no other image is under way with it
  int64_t bound_ = -1;         // the step that writes into the caller's output itself
  std::vector<Value> values_;  // what each step writes
  std::vector<Ahead> ahead_;   // of each share
};

}  // namespace ghost
