// The gate of DFC attention over batch statistics: what its forward and its backward have in common.
//
// All maps but x are of half its size. Their rows lie one after the other, whatever their image, and passes go over
// them in groups, one a thread. A pass writes its map whole, so that the next one reads rows of other groups too.
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

class NormalisedRows;

struct DfcContext {
  Map x;
  int64_t n = 0, h = 0, w = 0, c = 0, m = 0;   // h, w: of the small maps; m: their channels
  BatchNormState norm, row_norm, column_norm;  // the last with the gate as its activation
  AxisLayer row, column;
  const float* panels = nullptr;  // packed weight of the product

  int64_t all_rows() const { return n * h; }
  int64_t values() const { return n * h * w; }
  int64_t floats() const { return values() * m; }
  int64_t groups() const { return values() * c * m < kSerialFlops ? 1 : std::min(all_rows(), abi::num_threads()); }
  /// Rows that are worked on at once: enough pixels for a product; along columns also several times those around them.
  int64_t step() const { return step_rows(w, all_rows()); }
  int64_t column_step() const { return std::max<int64_t>(step(), 6 * column.halo()); }
  /// Row `row` of a small map whose pixels are dense, as all here but the operators' arguments and results.
  Rows at(float* map, int64_t row) const { return {map + row * w * m, m}; }

  /// body(group, first row, count) for steps of rows that may be of several images, the groups in parallel.
  template <class Body>
  void for_rows(int64_t step, const Body& body) const {
    const int64_t groups = this->groups();
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) {
        const int64_t last = all_rows() * (g + 1) / groups;
        for (int64_t r = all_rows() * g / groups; r < last; r += step) body(g, r, std::min(step, last - r));
      }
    });
  }
  /// body(image, first row, count, rows before) for each image's part of some rows.
  template <class Body>
  void for_images(int64_t row, int64_t count, const Body& body) const {
    for (int64_t done = 0; done < count;) {
      const int64_t y = (row + done) % h, part = std::min(count - done, h - y);
      body((row + done) / h, y, part, done);
      done += part;
    }
  }

  /// Rows of an operator's small map, in place where they are dense; `scratch` has flat_scratch(map, count) floats.
  Rows read(const Map& map, int64_t row, int64_t count, float* scratch) const;
  static bool is_flat(const Map& map) { return map.direct && (map.n == 1 || map.image == map.h * map.row); }
  static int64_t flat_scratch(const Map& map, int64_t count) {
    return is_flat(map) ? 0 : count * map.w * padded(map.c);
  }

  /// The pooled x of some rows, pixels by_eight(c) apart.
  Rows pool(int64_t row, int64_t count, Scratch& scratch) const;
  /// The product of the pooled rows, into `to`.
  void product(const Rows& pooled, int64_t row, int64_t count, float* to) const;
  /// bn(from) of some rows, dense.
  float* normalise(float* from, const BatchNormState& norm, int64_t row, int64_t count, Scratch& scratch) const;
  void convolve_rows(const float* in, const float* weight, int64_t count, float* to) const;
  void convolve_columns(const NormalisedRows& in, const float* weight, int64_t count, float* to) const;
  /// Addresses of rows that follow each other.
  std::vector<const float*> addresses(const float* first, int64_t count) const;
};

/// The rows that column convolutions of rows `row` to `row + count` read: one behind the other, those of other images
/// too, which are replaced by zeros where they are read.
class NormalisedRows {
 public:
  NormalisedRows(const DfcContext& t, int64_t row, int64_t count, Scratch& scratch);
  int64_t first() const { return first_; }
  int64_t count() const { return past_ - first_; }
  float* data() const { return data_; }  // to be written
  float* row(int64_t i) const { return data_ + (row_ - first_ + i) * pitch_; }
  /// The rows' addresses under tap 0, then those under tap 1, ...
  const float* const* taps() const { return taps_.data(); }

 private:
  int64_t row_, first_, past_, pitch_;
  float* data_;
  std::vector<const float*> taps_;
};

DfcContext make_context(const DfcArguments& a, Scratch& scratch);

}  // namespace ghost
