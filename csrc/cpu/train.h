// A Ghost module over batch statistics: what its passes (F1 to F3, B1 to B3 in docs/gradients.md) have in common.
//
// Where the primary convolution is not 1x1, it is PyTorch's, and the passes begin at its result: x is z1 then, and
// there is no primary weight.
//
// A pass goes over units (bands of rows of images) in groups, one a thread.
#pragma once
#include "batch_norm.h"
#include "upsampling.h"

namespace ghost {

struct TrainContext {
  Map x;
  int64_t n = 0, h = 0, w = 0, c = 0, m = 0;
  BatchNormState primary, cheap_norm;
  Cheap cheap;
  const float* panels = nullptr;  // packed primary weight; null: x is z1
  // z1, where it is in memory rather than computed again from x: [n][h][w] pixels, z1_pixel floats apart, and images
  // z1_image floats apart
  float* z1 = nullptr;
  int64_t z1_pixel = 0, z1_image = 0;
  UpsampledGate gate;  // what the output is multiplied by
  float* z1_out =
      nullptr;  // where PrimaryRows puts the z1 that it makes, for later passes: pixels of by_eight(m) floats

  int64_t values() const { return n * h * w; }
  bool has_product() const { return panels; }
  int64_t groups() const;
  int64_t bands() const;

  /// Where a band begins. All rows that are with one row of the gate are in the same one.
  int64_t band_start(int64_t band, int64_t bands) const {
    return gate ? gate.first_row_of((gate.h * band + bands - 1) / bands) : h * band / bands;
  }

  /// Cost of a pixel of z1 from x, in floats moved: x's, and the products' at a core's rate over its bandwidth.
  int64_t product_cost() const {
    constexpr int64_t kProductsPerFloatMoved = 12;
    return c + c * m / kProductsPerFloatMoved;
  }

  /// body(group, image, first row, row past the last) for every unit, the groups in parallel; backwards where asked,
  /// so that a pass starts with what the one before it left in cache.
  template <class Body>
  void for_units(bool backwards, const Body& body) const {
    const int64_t groups = this->groups(), bands = this->bands(), units = n * bands;
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) {
        const int64_t first = units * g / groups, last = units * (g + 1) / groups;
        for (int64_t i = first; i < last; i++) {
          const int64_t u = backwards ? last - 1 - (i - first) : i;
          body(g, u / bands, band_start(u % bands, bands), band_start(u % bands + 1, bands));
        }
      }
    });
  }

  /// Rows of z1: kept ones in place, else made of x's rows in `to` (count * w pixels of by_eight(m)): by the product,
  /// or converted.
  Rows z1_rows(int64_t image, int64_t y, int64_t count, float* x_scratch, float* to) const;
  /// Where z1 of row y is kept.
  Rows kept_rows(int64_t image, int64_t y) const { return {z1 + image * z1_image + y * w * z1_pixel, z1_pixel}; }
  /// Says that z1 is, or will be, in dense images of pixels that are so many floats apart.
  void keep_z1(float* data, int64_t pixel) { z1 = data, z1_pixel = pixel, z1_image = h * w * pixel; }
  /// z1 of these rows of x, of which by_eight(m) floats a pixel are written.
  void product(const Rows& x, int64_t count, const Rows& to, Ahead ahead) const;
};

/// Rows that are made in order, in steps, as far as they are asked for: z1 and y1 (expanded for the cheap operation).
class PrimaryRows {
 public:
  /// For rows begin - reach to end + reach; `span` rows before the newest step stay. z1 is there only if kept.
  PrimaryRows(const TrainContext& t, int64_t image, int64_t begin, int64_t end, int64_t reach, int64_t step,
              int64_t span, bool keep_z1, Scratch& scratch);
  void ensure(int64_t limit);  // all rows below it are made
  Rows z1(int64_t y) const { return t_.z1 ? t_.kept_rows(image_, y) : Rows{z_.row(y), by_eight(t_.m)}; }
  float* y1(int64_t y) const { return y1_.row(y); }
  /// Input rows of the cheap operation for output rows y to y + count, and their pixel stride.
  int64_t window(int64_t y, int64_t count, const float** rows) const;
  int64_t step() const { return step_; }

 private:
  const TrainContext& t_;
  int64_t image_, next_, bottom_, step_;
  bool keep_z1_;
  RowRing z_, y1_, expanded_;
  float* x_scratch_;
};

struct TrainArguments {
  const char* op;
  const abi::Tensor& x;
  const abi::Tensor* primary_weight;  // null: x is z1
  const std::optional<abi::Tensor>&primary_gamma, &primary_beta;
  const abi::Tensor& cheap_weight;
  const std::optional<abi::Tensor>&cheap_gamma, &cheap_beta, &act_weight, &cheap_act_weight;
  int64_t out_channels, act, cheap_act;
  double act_slope, cheap_act_slope, primary_eps, cheap_eps;
};

/// Checks and packs; all of the cheap operation's channels are there, kept or not. Statistics are not set yet.
TrainContext make_context(const TrainArguments& a, Scratch& scratch);
/// Checks the gate and takes it into the context.
void set_gate(TrainContext& t, const char* op, const abi::Tensor& gate, int64_t out_channels, Scratch& scratch);

}  // namespace ghost
