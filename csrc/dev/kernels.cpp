// ghost_ops._kernels: each instruction set's bare kernels on NumPy arrays, for tests and microbenchmarks. Built with
// GHOST_OPS_DEV=1; not part of the package that users install.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cmath>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels/bfloat16.h"

namespace py = pybind11;

namespace {

using ghost::padded;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

const ghost::Kernels& of(const std::string& isa) {
  if (const ghost::Kernels* k = ghost::kernels_of(isa.c_str())) return *k;
  throw py::value_error("isa: expected one that this machine runs, got " + isa);
}

void expect(bool fits, const char* message) {
  if (!fits) throw py::value_error(message);
}

template <class F>
double seconds_per_call(double seconds, const F& call) {
  using Clock = std::chrono::steady_clock;
  call();
  for (int64_t calls = 1;; calls *= 2) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; i++) call();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    if (took >= seconds) return took / static_cast<double>(calls);
  }
}

/// On cache lines' boundaries, as the library's own memory is.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  template <class U>
  bool operator==(const Aligned<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Aligned<U>&) const {
    return false;
  }
};
using Floats = std::vector<float, Aligned<float>>;

/// A product, with weights in float32 or bfloat16. The columns of x are in runs, and its rows in groups of `width` (0:
/// in one), with NaN between them.
struct GemmCall {
  void (*const kernel)(const ghost::Gemm&);
  Floats in, panels, bias, out;
  std::vector<float> factors;
  std::vector<ghost::Run> runs;
  ghost::Gemm args{};

  GemmCall(const std::string& isa, bool bf16, const float* x, int64_t m, int64_t c, const float* w, int64_t n,
           const float* b, bool relu, const std::vector<float>& scale, const std::vector<int64_t>& counts,
           int64_t width = 0)
      : kernel(bf16 ? of(isa).gemm_bf16 : of(isa).gemm),
        panels(ghost::panel_floats(n, bf16 ? ghost::bf16_pairs(c) : c)),
        bias(padded(n)),
        out(m * padded(n)),
        factors(scale) {
    const int64_t gap = bf16 || counts.size() > 1 ? 3 : 0;
    int64_t row = 0;
    for (int64_t count : counts) runs.push_back({row, count}), row += count + gap;
    const int64_t group = width * row + 5;
    const auto place = [&](int64_t i) { return width ? i / width * group + i % width * row : i * row; };
    in.assign(m ? place(m - 1) + row : 0, NAN);
    for (int64_t i = 0; i < m; i++)
      for (const ghost::Run& r : runs) {
        std::copy_n(x, r.count, in.begin() + place(i) + r.offset);
        x += r.count;
      }
    if (bf16)
      pack_bf16(w, n, c, nullptr, panels.data());
    else
      of(isa).pack({w, c, 1, n, c, nullptr, nullptr, panels.data()});
    std::copy(b, b + n, bias.begin());
    args = {in.data(), row, 1, m, c, n, panels.data(), 0, bias.data(), out.data(), padded(n), true, relu, false};
    args.runs = runs.data(), args.run_count = static_cast<int64_t>(runs.size());
    args.scale_k = factors.empty() ? nullptr : factors.data();
    args.a_width = width, args.a_group = group;
  }

  void run() const { kernel(args); }
};

struct DepthwiseCall {
  const ghost::Kernels& k;
  int64_t c, pixel, out_h, out_w;
  Floats in, zeros, weight, bias, out;
  std::vector<const float*> rows;
  ghost::Depthwise args{};

  DepthwiseCall(const std::string& isa, const float* x, int64_t h, int64_t w, int64_t c, const float* taps,
                int64_t size, const float* b, bool relu, int64_t stride)
      : k(of(isa)),
        c(c),
        pixel(padded(c)),
        out_h((h + stride - 1) / stride),
        out_w((w + stride - 1) / stride),
        in(h * w * pixel),
        zeros(w * pixel),
        weight(size * size * pixel),
        bias(pixel),
        out(out_h * out_w * c) {
    expect(size == 1 || size == 3 || size == 5 || size == 7, "w: expected a kernel of size 1, 3, 5 or 7");
    for (int64_t i = 0; i < h * w; i++) std::copy(x + i * c, x + (i + 1) * c, in.begin() + i * pixel);
    for (int64_t j = 0; j < c; j++)
      for (int64_t t = 0; t < size * size; t++) weight[t * pixel + j] = taps[j * size * size + t];
    std::copy(b, b + c, bias.begin());
    for (int64_t y = -(size / 2); y < h + size / 2; y++)
      rows.push_back(y < 0 || y >= h ? zeros.data() : in.data() + y * w * pixel);
    args = {rows.data(), pixel,     out_h, out_w, c,      size, weight.data(), pixel, bias.data(),
            out.data(),  out_w * c, c,     relu,  stride, w};
  }
};

Array product(const std::string& isa, bool bf16, const Array& x, const Array& w, const Array& bias, bool relu,
              const std::vector<float>& scale, std::vector<int64_t> runs, int64_t width) {
  expect(width >= 0, "width: expected at least 0");
  expect(x.ndim() == 2 && w.ndim() == 2 && bias.ndim() == 1, "expected x of M x C, w of N x C and bias of N");
  const int64_t m = x.shape(0), c = x.shape(1), n = w.shape(0);
  expect(w.shape(1) == c && bias.shape(0) == n, "expected x of M x C, w of N x C and bias of N");
  if (runs.empty()) runs = {c};
  int64_t columns = 0;
  for (int64_t count : runs) columns += count;
  expect(columns == c && static_cast<int64_t>(runs.size()) <= ghost::kMostRuns, "runs: expected the columns of x");
  expect(scale.empty() || static_cast<int64_t>(scale.size()) == c, "scale: expected a factor a column of x");
  const GemmCall call(isa, bf16, x.data(), m, c, w.data(), n, bias.data(), relu, scale, runs, width);
  call.run();
  Array out({m, n});
  for (int64_t i = 0; i < m; i++) std::copy_n(call.out.begin() + i * padded(n), n, out.mutable_data() + i * n);
  return out;
}

Array gemm(const std::string& isa, Array x, Array w, Array bias, bool relu, std::vector<int64_t> runs, int64_t width) {
  return product(isa, false, x, w, bias, relu, {}, runs, width);
}

Array gemm_bf16(const std::string& isa, Array x, Array w, Array bias, bool relu, std::vector<float> scale,
                std::vector<int64_t> runs, int64_t width) {
  return product(isa, true, x, w, bias, relu, scale, runs, width);
}

/// A product for each run of x, which add up; with weights in float32 all but the last leave out each group's first
/// row. The last one ends with SiLU and an addition.
Array gemm_parts(const std::string& isa, bool bf16, Array x, Array w, Array bias, Array added, bool is_added_last,
                 std::vector<int64_t> runs, int64_t width, bool is_padded) {
  const int64_t m = x.shape(0), n = w.shape(0), pixel = padded(n);
  expect(width > 0 && m % width == 0 && !runs.empty(), "width: expected whole groups, and runs");
  GemmCall call(isa, bf16, x.data(), m, x.shape(1), w.data(), n, bias.data(), false, {}, runs, width);
  for (int64_t i = 0; i < m; i++) std::copy_n(call.bias.begin(), n, call.out.begin() + i * pixel);
  const ghost::Finish finish{{nullptr, nullptr, ghost::act_silu, nullptr, added.data(), n, is_added_last},
                             of(isa).affine};
  int64_t first = 0;
  for (size_t i = 0; i < runs.size(); i++) {
    ghost::Gemm g = call.args;
    g.k = runs[i], g.runs = &call.runs[i], g.run_count = 1, g.b_rows = x.shape(1), g.b_first = first;
    g.accumulate = true, g.c_padded = is_padded, first += runs[i];
    if (i + 1 == runs.size())
      g.finish = &finish;
    else if (!bf16 && width > 1)
      g.a += g.a_row, g.a_width--, g.rows -= m / width, g.c += pixel, g.c_group = width * pixel;
    call.kernel(g);
  }
  Array out({m, n});
  for (int64_t i = 0; i < m; i++) std::copy_n(call.out.begin() + i * pixel, n, out.mutable_data() + i * n);
  return out;
}

Array depthwise(const std::string& isa, Array x, Array w, Array bias, bool relu, int64_t stride) {
  expect(stride > 0, "stride: expected at least 1");
  expect(x.ndim() == 3 && w.ndim() == 3 && bias.ndim() == 1, "expected x of H x W x C, w of C x k x k and bias of C");
  const int64_t height = x.shape(0), width = x.shape(1), c = x.shape(2);
  expect(w.shape(0) == c && w.shape(1) == w.shape(2) && bias.shape(0) == c, "expected w of C x k x k and bias of C");
  DepthwiseCall call(isa, x.data(), height, width, c, w.data(), w.shape(1), bias.data(), relu, stride);
  call.k.depthwise(call.args);
  Array out({call.out_h, call.out_w, c});
  std::copy(call.out.begin(), call.out.end(), out.mutable_data());
  return out;
}

/// Gradients of x and of w for one of the result, `grad`: the library's two kernels on the same rows.
py::tuple depthwise_backward(const std::string& isa, Array grad, Array x, Array w, int64_t stride) {
  expect(stride > 1, "stride: expected at least 2");
  expect(grad.ndim() == 3 && x.ndim() == 3 && w.ndim() == 3, "expected grad and x of H x W x C, w of C x k x k");
  const int64_t height = x.shape(0), width = x.shape(1), c = x.shape(2), size = w.shape(1), half = size / 2;
  const Floats none(c);
  DepthwiseCall call(isa, x.data(), height, width, c, w.data(), size, none.data(), false, stride);
  expect(w.shape(0) == c && w.shape(2) == size && grad.shape(0) == call.out_h && grad.shape(1) == call.out_w &&
             grad.shape(2) == c,
         "grad: expected the shape of the convolution's result");
  const int64_t pixel = call.pixel, taps = size * size, floats = ghost::sum_floats(c);
  Floats g(call.out_h * call.out_w * pixel, NAN), sums(taps * floats);
  for (int64_t i = 0; i < call.out_h * call.out_w; i++) std::copy_n(grad.data() + i * c, c, g.begin() + i * pixel);
  std::vector<const float*> grads, rows;
  for (int64_t y = 0; y < call.out_h; y++) grads.push_back(g.data() + y * call.out_w * pixel);
  for (int64_t y = -(half / stride); y <= (height + half) / stride; y++)
    rows.push_back(y < 0 || y >= call.out_h ? nullptr : grads[y]);
  Array grad_x({height, width, c}), grad_w({c, size, size});
  std::fill_n(grad_x.mutable_data(), grad_x.size(), NAN);
  call.k.depthwise_input_grad({rows.data(), pixel, call.out_w, height, width, c, size, stride, call.weight.data(),
                               pixel, grad_x.mutable_data(), width * c, c});
  call.k.depthwise_weight_grad(
      {call.rows.data(), pixel, call.out_h, call.out_w, c, size, grads.data(), pixel, sums.data(), stride, width});
  for (int64_t j = 0; j < c; j++)
    for (int64_t t = 0; t < taps; t++)
      grad_w.mutable_data()[j * taps + t] = static_cast<float>(ghost::sum_of(&sums[t * floats + j], c));
  return py::make_tuple(grad_x, grad_w);
}

Floats numbers(int64_t n) {
  Floats v(n);
  for (int64_t i = 0; i < n; i++) v[i] = static_cast<float>((i * 2654435761u) % 1000) / 1000.f - 0.5f;
  return v;
}

double time_gemm(const std::string& isa, int64_t m, int64_t c, int64_t n, double seconds, bool bf16) {
  expect(m > 0 && c > 0 && n > 0, "expected positive sizes");
  const auto x = numbers(m * c), w = numbers(n * c), b = numbers(n);
  const GemmCall call(isa, bf16, x.data(), m, c, w.data(), n, b.data(), true, {}, {c});
  return seconds_per_call(seconds, [&] { call.run(); });
}

double time_depthwise(const std::string& isa, int64_t h, int64_t w, int64_t c, int64_t size, double seconds,
                      int64_t stride) {
  expect(stride > 0 && h > 0 && w > 0 && c > 0, "expected positive sizes");
  const auto x = numbers(h * w * c), taps = numbers(c * size * size), b = numbers(c);
  DepthwiseCall call(isa, x.data(), h, w, c, taps.data(), size, b.data(), true, stride);
  return seconds_per_call(seconds, [&] { call.k.depthwise(call.args); });
}

double fma_peak(const std::string& isa, double seconds) {
  const ghost::Kernels& k = of(isa);
  constexpr int64_t kSteps = 1 << 16;
  double flops = 0;
  const double each = seconds_per_call(seconds, [&] { flops = k.fma_chain(kSteps); });
  return flops / each * 1e-9;
}

std::vector<std::string> sets(bool emulated) {
  std::vector<std::string> out;
  std::stringstream names(ghost::names());
  for (std::string name; std::getline(names, name, ',');)
    if ((name == "wide" || name == "tiles") == emulated) out.push_back(name);
  return out;
}

std::vector<std::string> isas() { return sets(false); }
std::vector<std::string> emulated() { return sets(true); }

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The torch-free CPU kernels of ghost_ops, one instruction set at a time, for tests and microbenchmarks.";
  m.def("isas", &isas, "Instruction sets that this machine runs, fastest first.");
  m.def("emulated", &emulated, "Further sets, of code that other machines run, for tests only.");
  m.def("fma_peak", &fma_peak, py::arg("isa"), py::arg("seconds") = 0.1,
        "GFLOP/s of independent FMA chains, one core.");
  m.def("gemm", &gemm, py::arg("isa"), py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("relu") = false,
        py::arg("runs") = std::vector<int64_t>{}, py::arg("width") = 0,
        "x (M x C) times w (N x C) transposed, plus bias. x is in runs of so many columns and groups of `width` rows.");
  m.def("gemm_bf16", &gemm_bf16, py::arg("isa"), py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("relu") = false,
        py::arg("scale") = std::vector<float>{}, py::arg("runs") = std::vector<int64_t>{}, py::arg("width") = 0,
        "The same with w rounded to bfloat16, and columns of x times `scale`.");
  m.def(
      "gemm_parts", &gemm_parts, py::arg("isa"), py::arg("bf16"), py::arg("x"), py::arg("w"), py::arg("bias"),
      py::arg("added"), py::arg("is_added_last"), py::arg("runs"), py::arg("width"), py::arg("is_padded"),
      "SiLU of such a product, and a sum with `added` (M x N): one product for each run, which add up; in float32 all "
      "but the last leave out each group's first row.");
  m.def("depthwise", &depthwise, py::arg("isa"), py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("relu") = false,
        py::arg("stride") = 1,
        "Depthwise convolution of x (H x W x C) with w (C x k x k), zero padding k // 2, plus bias.");
  m.def("depthwise_backward", &depthwise_backward, py::arg("isa"), py::arg("grad"), py::arg("x"), py::arg("w"),
        py::arg("stride"), "Gradients of x (H x W x C) and w (C x k x k) of a strided depthwise convolution.");
  m.def("time_gemm", &time_gemm, py::arg("isa"), py::arg("m"), py::arg("c"), py::arg("n"), py::arg("seconds") = 0.1,
        py::arg("bf16") = false, "Seconds per call of an M x C by C x N product, with weights in float32 or bfloat16.");
  m.def("time_depthwise", &time_depthwise, py::arg("isa"), py::arg("h"), py::arg("w"), py::arg("c"), py::arg("kernel"),
        py::arg("seconds") = 0.1, py::arg("stride") = 1, "Seconds per call of a depthwise convolution over H x W x C.");
}
