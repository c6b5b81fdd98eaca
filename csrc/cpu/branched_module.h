// A module whose two convolutions are sums of branches, each with its own BatchNorm over batch statistics (RepGhost,
// GhostNetV3 in training): what its forward and its backward have in common.
//
// The rows of a map lie one after the other, whatever their image, and passes go over them in groups, one a thread. A
// pass writes its map whole, so that the next one reads rows of other groups too.
#pragma once
#include "batch_norm.h"
#include "upsampling.h"

namespace ghost {

struct BranchedArguments {
  const char* op;
  const abi::Tensor& x;
  const std::optional<abi::Tensor>& gate;
  const abi::Tensor& primary_weight;
  const std::optional<abi::Tensor>&primary_gamma, &primary_beta;
  const abi::Tensor& cheap_weight;
  const std::optional<abi::Tensor>&scale_weight, &cheap_gamma, &cheap_beta;
  int64_t branches;
  bool identity;
  int64_t out_channels, act, cheap_act;
  double act_slope, cheap_act_slope, primary_eps, cheap_eps;
};

/// Whether there are kernels for convolutions of these sizes, and maps that they can be over.
bool branched_known(const BranchedArguments& a);

struct BranchedContext {
  Map x;
  int64_t n = 0, h = 0, w = 0, c = 0, m = 0;  // m: channels of each branch
  int64_t kernel = 1, kept = 0, first = 0;    // channels of the cheap sum that out has, and where they begin in it
  Act act = kNone, cheap_act = kNone;
  const float *slope = nullptr, *cheap_slope = nullptr;
  std::vector<BatchNormState> primary;  // of each branch
  std::vector<BatchNormState> cheap;    // of the depthwise ones, the scaled y1 if it is there, and y1 if it is
  bool scales = false, identity = false;
  std::vector<const float*> weights, flipped;  // of the depthwise branches, packed
  std::vector<float> scale;                    // of the branch that scales y1
  const float* stacked = nullptr;              // primary weights, [branches * pixel()][c], zeros between the branches
  const float* panels = nullptr;               // the same, packed
  UpsampledGate gate;                          // what the output is multiplied by
  std::vector<const float*> minus_scale, minus_shift;  // of the primary branches

  int64_t pixel() const { return by_eight(m); }
  int64_t depthwise_branches() const { return static_cast<int64_t>(weights.size()); }
  int64_t products() const { return static_cast<int64_t>(primary.size()) * pixel(); }  // floats of a pixel of z
  int64_t taps() const { return kernel * kernel; }
  int64_t halo() const { return kernel / 2; }
  int64_t all_rows() const { return n * h; }
  int64_t values() const { return n * h * w; }
  /// Rows of a step of products: enough pixels for a packed weight that is read once a step.
  int64_t product_step() const { return std::max<int64_t>(1, 128 / w); }
  /// Rows of a step of depthwise convolutions: several times those around them, which are computed too.
  int64_t step() const { return std::max(step_rows(w, h), 8 * halo()); }
  int64_t groups() const;

  /// body(group, first row, count) for steps of rows that may be of several images, the groups in parallel. With a gate
  /// a group has whole images, since several rows add to one of the gate's gradient.
  template <class Body>
  void for_rows(int64_t step, const Body& body) const {
    const int64_t groups = this->groups();
    const auto bound = [&](int64_t g) { return gate ? n * g / groups * h : all_rows() * g / groups; };
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++)
        for (int64_t r = bound(g), last = bound(g + 1); r < last; r += step) body(g, r, std::min(step, last - r));
    });
  }
  /// body(image, first row in it, count, rows before) for each image's part of some rows.
  template <class Body>
  void for_images(int64_t row, int64_t count, const Body& body) const {
    for (int64_t done = 0; done < count;) {
      const int64_t y = (row + done) % h, part = std::min(count - done, h - y);
      body((row + done) / h, y, part, done);
      done += part;
    }
  }
  /// body(group, image, first row, count) for steps of rows of one image each.
  template <class Body>
  void for_steps(const Body& body) const {
    const int64_t most = step();
    for_rows(all_rows(), [&](int64_t group, int64_t row, int64_t count) {
      for_images(row, count, [&](int64_t image, int64_t y, int64_t part, int64_t) {
        for (int64_t i = 0; i < part; i += most) body(group, image, y + i, std::min(most, part - i));
      });
    });
  }

  /// Row `row` of a map of pixels of so many floats.
  Rows at(float* map, int64_t row, int64_t pixel) const { return {map + row * w * pixel, pixel}; }
  Rows at(float* map, int64_t row) const { return at(map, row, pixel()); }
  static bool is_flat(const Map& map) { return map.direct && (map.n == 1 || map.image == map.h * map.row); }
  /// Rows of x, in place where they follow each other, else copied.
  Rows read_x(int64_t row, int64_t count, Scratch& scratch) const;

  /// Scales and shifts of all BatchNorms, from their statistics.
  void set_affine(Scratch& scratch);
  /// The products of rows of x, one behind the other in a pixel.
  void product(const Rows& x, int64_t row, int64_t count, float* z) const;
  /// The sum of the primary branches of some rows, before the activation.
  void sum_branches(float* z, int64_t row, int64_t count, const Rows& to) const;
  /// y1 of some rows.
  void activate(float* z, int64_t row, int64_t count, float* y1) const;
  /// Addresses of rows y - halo to y + count + halo of an image's map, zeros outside of it.
  std::vector<const float*> window(const float* map, int64_t image, int64_t y, int64_t count, const float* zeros) const;
  /// A depthwise convolution of `channels` channels: `count` rows from a window of pixel() floats a pixel.
  void convolve(const std::vector<const float*>& rows, const float* weight, const float* bias, int64_t channels,
                int64_t count, const Rows& to, bool relu = false) const;
};

/// All branches of the cheap sum as one depthwise convolution, with its bias: BatchNorms folded in.
struct MergedCheap {
  float *weight, *bias;
  MergedCheap(const BranchedContext& t, Scratch& scratch);
};

/// Checks and packs. Statistics are not set yet.
BranchedContext make_context(const BranchedArguments& a, Scratch& scratch);
/// Statistics of the branches that read a pixel of y1 each, from those of y1.
void set_pointwise_statistics(BranchedContext& t, const float* mean, const float* var);

}  // namespace ghost
