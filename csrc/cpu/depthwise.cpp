// depthwise: a depthwise convolution. DepthwiseBackward: each row of the gradient and of x is read once a band, for the
// gradients of x, of the weight and of the bias.
#include "operator.h"
#include "train.h"

namespace ghost {
namespace {

constexpr int64_t kMostRows = 128;  // that a step reads of a map

struct Geometry {
  int64_t n, c, h, w, kernel, stride, out_h, out_w;

  Geometry(const Map& x, int64_t kernel, int64_t stride)
      : n(x.n),
        c(x.c),
        h(x.h),
        w(x.w),
        kernel(kernel),
        stride(std::min(stride, std::max(h, w))),  // more does not differ from it
        out_h((h - 1) / this->stride + 1),
        out_w((w - 1) / this->stride + 1) {}

  int64_t halo() const { return kernel / 2; }
  int64_t taps() const { return kernel * kernel; }
  /// Output rows that are made together.
  int64_t step() const {
    return std::max<int64_t>(1, std::min(step_rows(out_w, out_h), (kMostRows - kernel) / stride));
  }
  int64_t bands() const {
    constexpr int64_t kLeastRows = 7;  // below this the rows that two bands read cost more than a thread gains
    return std::max<int64_t>(1, std::min(bands_for(n, out_h, abi::num_threads()), out_h / kLeastRows));
  }
  int64_t groups() const {
    const bool small = n * out_h * out_w * c * taps() < kSerialFlops;
    return small ? 1 : std::min(n * bands(), abi::num_threads());
  }

  /// body(group, image, first output row, row past the last) for every unit, the groups in parallel.
  template <class Body>
  void for_units(const Body& body) const {
    const int64_t groups = this->groups(), bands = this->bands(), units = n * bands;
    abi::parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++)
        for (int64_t u = units * g / groups; u < units * (g + 1) / groups; u++)
          body(g, u / bands, out_h * (u % bands) / bands, out_h * (u % bands + 1) / bands);
    });
  }
};

/// Rows of one image, as far as they are asked for, whole vectors of channels to be read: in place where that stays
/// within the pixel, else converted into a ring.
class ImageRows {
 public:
  /// For rows `first` to `end`, in steps; `span` rows before the newest step stay.
  ImageRows(const Map& m, int64_t image, int64_t first, int64_t end, int64_t step, int64_t span, Scratch& scratch)
      : m_(m),
        image_(image),
        next_(std::max<int64_t>(0, first)),
        bottom_(std::min(m.h, end)),
        step_(std::min(step, m.h)),
        direct_(m.direct && m.c % 8 == 0),
        pixel_(direct_ ? m.pixel : padded(m.c)) {
    if (direct_)
      zeros_ = scratch.zeros(m.w * m.pixel);
    else
      ring_ = RowRing(next_, step_, span, m.h, m.w, pixel_, scratch);
  }

  int64_t pixel() const { return pixel_; }

  void ensure(int64_t limit) {
    for (limit = std::min(limit, bottom_); next_ < limit; next_ += step_) {
      const int64_t count = std::min(step_, bottom_ - next_);
      if (direct_)
        fetch_rows(m_, image_, next_, count);
      else
        kernels().gather({m_.at(image_, next_), m_.bf16, m_.channel, m_.row, m_.pixel}, count, m_.w, m_.c,
                         ring_.row(next_), m_.w * pixel_, pixel_);
    }
  }

  /// Pointers to rows y to y + count. Those outside of the map are zeros.
  void window(int64_t y, int64_t count, const float** rows) const {
    if (!direct_) return ring_.window(y, count, 0, rows);
    for (int64_t i = y; i < y + count; i++)
      *rows++ = inside(i) ? reinterpret_cast<const float*>(m_.at(image_, i)) : zeros_;
  }
  bool inside(int64_t y) const { return y >= 0 && y < m_.h; }

 private:
  const Map& m_;
  int64_t image_, next_, bottom_, step_;
  bool direct_;
  int64_t pixel_;
  RowRing ring_;
  float* zeros_ = nullptr;
};

/// Input rows that output rows begin to end read, in steps of the geometry's.
ImageRows input_rows(const Geometry& g, const Map& x, int64_t image, int64_t begin, int64_t end, Scratch& scratch) {
  const int64_t step = g.step();
  return {x,
          image,
          begin * g.stride - g.halo(),
          (end - 1) * g.stride + g.halo() + 1,
          step * g.stride,
          (step - 1) * g.stride + g.kernel,
          scratch};
}

struct DepthwiseBackward {
  Geometry g;
  Map grad_out, x, grad_x;
  bool input, weight, bias;
  const float* packed;             // the weight, flipped where the stride is 1
  float *weight_sums, *bias_sums;  // per group: [taps] sums, one sum

  int64_t weight_floats() const { return g.taps() * sum_floats(g.c); }
  int64_t before() const { return g.halo() / g.stride; }                  // rows of the gradient that reach a row of x
  int64_t after() const { return (g.stride - 1 + g.halo()) / g.stride; }  // and those that reach its last

  /// Gradient of x under output rows y to y + count.
  void input_gradient(const ImageRows& grad, int64_t image, int64_t y, int64_t count, float* scratch) const {
    const float* rows[2 * kMostRows];
    const int64_t first = y * g.stride, made = std::min(g.h, (y + count) * g.stride) - first;
    const int64_t window = before() + count + after(), pad = padded(g.c);
    grad.window(y - before(), window, rows);
    const Rows to = rows_to_write(grad_x, image, first, scratch);
    if (g.stride == 1) {
      kernels().depthwise({rows, grad.pixel(), made, g.w, g.c, g.kernel, packed, pad, nullptr, to.data, g.w * to.pixel,
                           to.pixel, false});
    } else {
      for (int64_t i = 0; i < window; i++)
        if (!grad.inside(y - before() + i)) rows[i] = nullptr;
      kernels().depthwise_input_grad({rows, grad.pixel(), g.out_w, made, g.w, g.c, g.kernel, g.stride, packed, pad,
                                      to.data, g.w * to.pixel, to.pixel});
    }
    finish_rows(grad_x, image, first, made, to);
  }

  void weight_gradient(const ImageRows& in, const ImageRows& grad, int64_t group, int64_t y, int64_t count) const {
    const float *rows[2 * kMostRows], *grads[kMostRows];
    in.window(y * g.stride - g.halo(), (count - 1) * g.stride + g.kernel, rows);
    grad.window(y, count, grads);
    kernels().depthwise_weight_grad({rows, in.pixel(), count, g.out_w, g.c, g.kernel, grads, grad.pixel(),
                                     weight_sums + group * weight_floats(), g.stride, g.w});
  }

  void take_gradients() const {
    g.for_units([&](int64_t group, int64_t image, int64_t begin, int64_t end) {
      Scratch own;
      const int64_t step = g.step();
      ImageRows grad(grad_out, image, begin - before(), end + after(), step, before() + step + after(), own);
      ImageRows in = input_rows(g, x, image, begin, end, own);
      float* scratch = own.floats(input ? rows_scratch(grad_x, step * g.stride) : 0);
      for (int64_t y = begin; y < end; y += step) {
        const int64_t count = std::min(step, end - y);
        grad.ensure(y + count + after());
        if (input) input_gradient(grad, image, y, count, scratch);
        if (weight) in.ensure((y + count - 1) * g.stride + g.halo() + 1), weight_gradient(in, grad, group, y, count);
        if (!bias) continue;
        const float* rows[kMostRows];
        grad.window(y, count, rows);
        for (int64_t i = 0; i < count; i++)
          kernels().sum_in_double(rows[i], grad.pixel(), g.out_w, g.c, bias_sums + group * sum_floats(g.c));
      }
    });
  }
};

void check_weight(const Checks& check, const Tensor& x, const Tensor& weight, const Optional& bias, int64_t stride) {
  check.map("x", x);
  check.shape("weight", weight, {x.size(1), 1, weight.size(2), weight.size(2)});
  check.shape("bias", bias, {x.size(1)});
  check.that(stride > 0, "stride", "at least 1", stride);
}

}  // namespace

Tensor depthwise(const Tensor& x, const Tensor& weight, const Optional& bias, int64_t stride) {
  if (!all_readable(x, weight, bias) || !cheap_kernel_known(weight) || x.numel() == 0)
    return abi::call<Tensor>("ghost_ops::depthwise_reference", "", x, weight, bias, stride);
  check_weight(Checks("depthwise"), x, weight, bias, stride);
  Scratch scratch;
  const Map from(x);
  const Geometry g(from, weight.size(2), stride);
  Tensor out = new_map({g.n, g.c, g.out_h, g.out_w}, x);
  const Map to(out);
  const float* packed = pack_cheap(dense(weight, scratch), g.kernel, g.c, nullptr, scratch);
  const float* start = bias ? padded_copy(dense(bias, scratch), g.c, scratch) : nullptr;
  g.for_units([&](int64_t, int64_t image, int64_t begin, int64_t end) {
    Scratch own;
    const int64_t step = g.step();
    ImageRows in = input_rows(g, from, image, begin, end, own);
    float* made = own.floats(rows_scratch(to, step));
    for (int64_t y = begin; y < end; y += step) {
      const float* rows[2 * kMostRows];
      const int64_t count = std::min(step, end - y);
      in.ensure((y + count - 1) * g.stride + g.halo() + 1);
      in.window(y * g.stride - g.halo(), (count - 1) * g.stride + g.kernel, rows);
      const Rows put = rows_to_write(to, image, y, made);
      kernels().depthwise({rows, in.pixel(), count, g.out_w, g.c, g.kernel, packed, padded(g.c), start, put.data,
                           g.out_w * put.pixel, put.pixel, false, g.stride, g.w});
      finish_rows(to, image, y, count, put);
    }
  });
  return out;
}

GHOST_OPERATOR(depthwise);

Results<3> depthwise_backward(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Optional& bias,
                              int64_t stride, bool input_wanted, bool weight_wanted) {
  if (!all_readable(grad_out, x, weight, bias) || !cheap_kernel_known(weight) || x.numel() == 0)
    return abi::call<Results<3>>("ghost_ops::depthwise_backward_reference", "", grad_out, x, weight, bias, stride,
                                 input_wanted, weight_wanted);
  const Checks check("depthwise_backward");
  check_weight(check, x, weight, bias, stride);
  Scratch scratch;
  const Map in(x);
  const Geometry g(in, weight.size(2), stride);
  check.shape("grad_out", grad_out, {g.n, g.c, g.out_h, g.out_w});
  const abi::DType dtype = x.dtype();
  Tensor grad_x = input_wanted ? new_map({g.n, g.c, g.h, g.w}, x) : abi::empty({0}, dtype);
  const int64_t groups = g.groups(), floats = g.taps() * sum_floats(g.c);
  DepthwiseBackward b{g,
                      Map(grad_out),
                      in,
                      input_wanted ? Map(grad_x) : Map(),
                      input_wanted,
                      weight_wanted,
                      bias.has_value(),
                      pack_cheap(dense(weight, scratch), g.kernel, g.c, nullptr, scratch, g.stride == 1),
                      scratch.zeros(weight_wanted ? groups * floats : 0),
                      scratch.zeros(bias ? groups * sum_floats(g.c) : 0)};
  if (input_wanted || weight_wanted || bias) b.take_gradients();
  const auto total = [&](const float* parts, int64_t sums, float* out) {
    const std::vector<double> all = combine(parts, groups, sums * sum_floats(g.c), sums * sum_floats(g.c));
    for (int64_t c = 0; c < g.c; c++)
      for (int64_t i = 0; i < sums; i++) {
        const double* sum = &all[i * sum_floats(g.c) + c];
        out[c * sums + i] = static_cast<float>(sum[0] - sum[padded(g.c)]);
      }
    return out;
  };
  return {std::move(grad_x),
          weight_wanted ? result(total(b.weight_sums, g.taps(), scratch.floats(g.c * g.taps())),
                                 {g.c, 1, g.kernel, g.kernel}, weight.dtype())
                        : abi::empty({0}, dtype),
          bias ? result(total(b.bias_sums, 1, scratch.floats(g.c)), {g.c}, bias->dtype()) : abi::empty({0}, dtype)};
}

GHOST_OPERATOR(depthwise_backward);

}  // namespace ghost
