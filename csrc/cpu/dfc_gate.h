// The gate of DFC attention over batch statistics: what its forward and its backward have in common.
//
// All maps but x are of half its size. Passes go over the rows of all images, one after the other, in groups, one a
// thread. A pass writes its map whole, so that the next one reads rows of other groups too.
#pragma once
#include "batch_norm.h"

namespace ghost {

/// A depthwise convolution along one axis, before its BatchNorm.
struct AxisLayer {
  int64_t taps = 1;
  const float* weight = nullptr;   // [taps x padded(channels)]
  const float* flipped = nullptr;  // for the gradient of the input
  int64_t halo() const { return taps / 2; }
};

struct DfcArguments {
  const char* op;
  const abi::Tensor &x, &weight;
  const std::optional<abi::Tensor>&gamma, &beta;
  const abi::Tensor& row_weight;
  const std::optional<abi::Tensor>&row_gamma, &row_beta;
  const abi::Tensor& column_weight;
  const std::optional<abi::Tensor>&column_gamma, &column_beta;
  int64_t gate;
  double eps, row_eps, column_eps;
};

/// Whether there are kernels for convolutions of these sizes, and maps that they can be over.
bool dfc_known(const DfcArguments& a);

struct DfcContext {
  Map x;
  int64_t n = 0, h = 0, w = 0, c = 0, m = 0;   // h, w: of the small maps; m: their channels
  BatchNormState norm, row_norm, column_norm;  // the last with the gate as its activation
  AxisLayer row, column;
  const float* panels = nullptr;  // packed weight of the product

  int64_t all_rows() const { return n * h; }
  int64_t values() const { return n * h * w; }
  int64_t floats() const { return values() * m; }
  int64_t step() const { return step_rows(w, all_rows()); }
  int64_t groups() const { return values() * c * m < kSerialFlops ? 1 : std::min(all_rows(), abi::num_threads()); }
  /// Row `row` of a small map whose pixels are dense.
  Rows at(float* map, int64_t row) const { return {map + row * w * m, m}; }

  /// body(group, first row, count) for steps of rows that may be of several images, the groups in parallel.
  template <class Body>
  void for_rows(const Body& body) const {
    const int64_t groups = this->groups(), step = this->step();
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) {
        const int64_t last = all_rows() * (g + 1) / groups;
        for (int64_t r = all_rows() * g / groups; r < last; r += step) body(g, r, std::min(step, last - r));
      }
    });
  }
  /// body(group, image, first row, row past the last) for what each group has of each image.
  template <class Body>
  void for_images(const Body& body) const {
    const int64_t groups = this->groups();
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) {
        const int64_t last = all_rows() * (g + 1) / groups;
        for (int64_t r = all_rows() * g / groups; r < last;) {
          const int64_t image = r / h, past = std::min(last, (image + 1) * h);
          body(g, image, r - image * h, past - image * h);
          r = past;
        }
      }
    });
  }

  /// The pooled x of some rows, [count * w x c], pixels by_eight(c) apart.
  class PooledRows {
   public:
    PooledRows(const DfcContext& t, Scratch& scratch)
        : t_(t), x_(scratch.floats(rows_scratch(t.x, 2))), out_(scratch.floats(t.step() * t.w * by_eight(t.c))) {}
    Rows make(int64_t row, int64_t count) const;

   private:
    const DfcContext& t_;
    float *x_, *out_;
  };

  /// Normalised rows with zeros on both sides, for a convolution along them.
  class PaddedRows {
   public:
    PaddedRows(const DfcContext& t, Scratch& scratch)
        : t_(t),
          row_((t.w + 2 * t.row.halo()) * by_eight(t.m)),
          data_(scratch.zeros(t.step() * row_)),
          starts_(t.step()),
          inner_(t.step()) {
      for (int64_t i = 0; i < t.step(); i++)
        starts_[i] = data_ + i * row_, inner_[i] = data_ + i * row_ + t.row.halo() * by_eight(t.m);
    }
    int64_t pixel() const { return by_eight(t_.m); }
    float* row(int64_t i) const { return data_ + i * row_ + t_.row.halo() * pixel(); }
    const float* const* starts() const { return starts_.data(); }  // of the rows with their zeros
    const float* const* rows() const { return inner_.data(); }

   private:
    const DfcContext& t_;
    int64_t row_;
    float* data_;
    std::vector<const float*> starts_, inner_;
  };

  void product(const Rows& pooled, int64_t row, int64_t count, float* to) const;  // of the rows' pixels, m floats each
  /// The row convolution of the normalised product, into `to`.
  void convolve_rows(float* product, const PaddedRows& padded, int64_t row, int64_t count, float* to) const;
  /// Rows of bn(from), in `ring`, as far as `limit`.
  void normalise(float* from, const BatchNormState& norm, int64_t image, int64_t& next, int64_t limit,
                 const RowRing& ring) const;
  RowRing column_ring(int64_t begin, Scratch& scratch) const {
    const int64_t halo = column.halo();
    return {std::max<int64_t>(0, begin - halo), step(), step() + 2 * halo, h, w, by_eight(m), scratch};
  }
  /// The column convolution of rows y to y + count of the ring's.
  void convolve_columns(const RowRing& ring, const float* weight, int64_t y, int64_t count, const Rows& to) const;
};

DfcContext make_context(const DfcArguments& a, Scratch& scratch);

}  // namespace ghost
