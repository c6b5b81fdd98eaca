// The torch-free CPU kernels: one table of functions per instruction set, over float32 rows in NHWC order.
//
// A row is `width` pixels of `channels` floats. Scratch rows have by_eight(channels) floats a pixel or more; lanes past
// the channels hold anything and are never stored to a caller's tensor. Nothing here allocates or throws.
//
// Shapes are in brackets: [pixels x channels] is row-major. A stride, in elements, is named for what it goes from one
// to the next of: x_pixel for the pixels of x, x_row for its rows. Channels follow each other; so do other innermost
// numbers that have no stride of their own.
#pragma once
#include <cstdint>

#include "activations.h"

namespace ghost {

constexpr int64_t kPad = 16;  // the widest vector, in floats
constexpr int64_t padded(int64_t channels) { return (channels + kPad - 1) / kPad * kPad; }
constexpr int64_t by_eight(int64_t channels) { return (channels + 7) / 8 * 8; }

// Packed panels hold the same for every instruction set: kPanel columns of B a row, k rows, one panel after the other;
// the last is 8 wide where no more than 8 columns are left. Columns past n are zero.
constexpr int64_t kPanel = 16;
constexpr int64_t panel_floats(int64_t n, int64_t k) { return by_eight(n) * k; }

// Panels of bfloat16 hold pairs: a row is as many floats wide, each the bits of two columns of A, the first one's in
// the lower half. Where k is odd the last pair's second number is zero.
constexpr int64_t bf16_pairs(int64_t k) { return (k + 1) / 2; }

// Columns of A that follow each other: `count` of them, the first `offset` floats on.
struct Run {
  int64_t offset, count;
};
constexpr int64_t kMostRuns = 64;

// Memory that will be read later, to be fetched into the cache on the way: `step` bytes with a column of 16 rows of A.
struct Ahead {
  const char *at, *end;
  int64_t step;
};

struct Finish;

// C[rows][n] = relu?(A[rows][k] B[k][n] + bias), or C += A B.
struct Gemm {
  const float* a;        // [rows x k]
  int64_t a_row, a_col;  // A[i][j] is a[i * a_row + j * a_col]; with `runs`, j counts from a run's `offset`
  int64_t rows, k, n;
  const float* b;     // [k x n], or its panels: panel_floats(n, k), for gemm_bf16 panel_floats(n, bf16_pairs(k))
  int64_t b_row;      // 0: packed panels; else B[j] is b + j * b_row, by_eight(n) floats readable
  const float* bias;  // by_eight(n) floats, or null
  float* c;           // [rows x n]
  int64_t c_row;      // C[i] is c + i * c_row
  bool c_padded;      // by_eight(n) floats of each row of C may be written
  bool relu, accumulate;
  const Run* runs = nullptr;       // [run_count], where the k columns of A are, in order; null: all together
  int64_t run_count = 0;           // at most kMostRuns
  Ahead* ahead = nullptr;          // or null
  const float* scale_k = nullptr;  // only for gemm_bf16: [k], factors of A's columns, or null
  // Rows of A in groups, such as the pixels of rows of a map: row i is a + i / a_width * a_group + i % a_width * a_row.
  // 0: they are one group. With groups a_col is 1, and B is packed.
  int64_t a_width = 0, a_group = 0;
  // Rows of C in the same groups, of which each begins so many floats after the one before: only for gemm, and without
  // `finish`. 0: rows of C are c_row apart.
  int64_t c_group = 0;
  // B as some rows of larger packed panels, of `b_rows` rows each: A's first column goes with row b_first, which is
  // even for gemm_bf16, as it counts columns of A. 0: the panels have k rows.
  int64_t b_rows = 0, b_first = 0;
  const Finish* finish = nullptr;  // of rows of C whose sums are complete, while they are in cache; or null
};

// B[k][n] = weight[n * w_row + k * w_col] * scale_n[n] * scale_k[k] in panels, panel_floats(n, k) of them.
struct Pack {
  const float* weight;   // [n x k]
  int64_t w_row, w_col;  // from one n, and from one k, to the next
  int64_t n, k;
  const float* scale_n;  // [n]; null: 1
  const float* scale_k;  // [k]; null: 1
  float* out;            // panels one after the other, each [k x kPanel], the last one maybe [k x 8]
};

// A BatchNorm over running statistics as a scale of the convolution before it and a bias after it. All are [channels].
struct Fold {
  int64_t channels;
  const float *bias, *gamma, *beta;  // null: 0, 1, 0
  const float *mean, *var;
  double eps;
  float *scale, *shift;
};

// out = relu?(depthwise(rows) + bias), padded by kernel / 2: `count` output rows of `width` pixels from
// (count - 1) * stride + kernel input rows.
struct Depthwise {
  const float* const* rows;  // each [input pixels x channels], in_pixel apart; one outside the map points at zeros
  int64_t in_pixel, count, width, channels;
  int64_t kernel;              // 1, 3, 5 or 7
  const float* weight;         // [kernel * kernel x padded(channels)], taps row by row
  int64_t weight_row;          // from one to the next
  const float* bias;           // padded(channels), or null
  float* out;                  // [count x width x channels]
  int64_t out_row, out_pixel;  // only `channels` floats of a pixel are written
  bool relu;
  int64_t stride = 1;
  int64_t in_width = 0;  // pixels of an input row, with a stride above 1; with 1 it is `width`
};

// A row of a depthwise convolution with any kernel: `width` output pixels.
struct DepthwiseRow {
  const float* const* rows;  // [kernel_h], each [in_width x channels]; one outside the map points at zeros
  int64_t in_pixel, in_width, width, channels;
  int64_t kernel_h, kernel_w;
  int64_t stride, padding, dilation;  // of columns
  const float* weight;                // [kernel_h * kernel_w x padded(channels)], taps row by row
  int64_t weight_row;
  const float* bias;  // padded(channels), or null
  float* out;         // [width x channels]
  int64_t out_pixel;  // only `channels` floats of a pixel are written
  bool relu;
};

// grad[tap][channel] += sum over pixels of g times the input under the tap.
struct DepthwiseWeightGrad {
  const float* const* rows;  // (count - 1) * stride + kernel input rows, as in Depthwise
  int64_t in_pixel, count, width, channels, kernel;
  const float* const* g;  // `count` rows, each [width x channels], g_pixel apart
  int64_t g_pixel;
  float* grad;  // [kernel * kernel x sum_floats(channels)]: a sum for each tap
  int64_t stride = 1;
  int64_t in_width = 0;  // as in Depthwise
};

// Gradient of a depthwise convolution's input, with a stride above 1: `count` rows of `width` pixels, the first of them
// under the centre of an output row.
struct DepthwiseInputGrad {
  // The output's gradient, from kernel / 2 / stride rows before that one on, each [g_width x channels], g_pixel apart.
  // Null: no row.
  const float* const* rows;
  int64_t g_pixel, g_width, count, width, channels, kernel, stride;
  const float* weight;  // as in Depthwise
  int64_t weight_row;
  float* out;                  // [count x width x channels]
  int64_t out_row, out_pixel;  // only `channels` floats of a pixel are written
};

// A depthwise convolution along one axis: tap j of pixel i of output row r is pixel i of row rows[r + j * tap_row], or,
// where tap_row is 0, pixel i + j - taps / 2 of rows[r]; pixels outside of a row are zero.
struct AxisConv {
  const float* const* rows;  // each [pixels x channels], in_pixel apart
  int64_t in_pixel, tap_row;
  int64_t count, width, channels;
  int64_t taps;                // 1, 3, 5 or 7
  const float* weight;         // [taps x padded(channels)]
  int64_t weight_row;          // from one to the next
  float* out;                  // [count x width x channels]
  int64_t out_row, out_pixel;  // only `channels` floats of a pixel are written
  const float* bias = nullptr;
  bool relu = false;
};

// grad[tap][channel] += sum over pixels of g times the input under the tap.
struct AxisWeightGrad {
  const float* const* rows;  // as in AxisConv, as is what follows
  int64_t in_pixel, tap_row;
  int64_t count, width, channels, taps;
  const float* const* g;  // `count` rows, each [width x channels], g_pixel apart
  int64_t g_pixel;
  float* grad;  // [taps x sum_floats(channels)]: a sum for each tap
};

// A row beside one of a smaller map: pixel i of x is with pixel columns[i] of the other.
struct Upsampled {
  const float* x;  // [width x channels]
  int64_t x_pixel, width, channels;
  const int32_t* columns;  // [width]
};

// Where a pixel of bilinear upsampling is: between two pixels of a row, `across` of the way from left to right.
struct Between {
  int32_t left, right;
  float across;
};

// A row of bilinear upsampling, `down` of the way from one row of the small map to another.
struct Bilinear {
  const float *above, *below;
  int64_t x_pixel;
  float down;
  const Between* places;  // [width]
  int64_t width, channels;
  float* out;  // [width x channels]
  int64_t out_pixel;
};

// Per-channel coefficients of an activation after an affine map: y = act(z * scale + shift + added), or, where what is
// added comes last, act(z * scale + shift) + added. Vectors are padded(channels).
struct Affine {
  const float* scale;  // null: 1
  const float* shift;  // null: 0
  Act act;
  const float* slope;            // of activations that have slopes, else unused
  const float* added = nullptr;  // [pixels x channels], added_pixel apart, or null
  int64_t added_pixel = 0;
  bool is_added_last = false;
};

// An affine map of C's rows and columns, by the kernel of that name: `apply` has its arguments.
struct Finish {
  Affine affine;
  void (*apply)(const float* z, int64_t z_pixel, const Affine&, float* y, int64_t y_pixel, int64_t pixels,
                int64_t channels);
};

// Backward of batch norm and activation over `pixels` pixels: g = grad act'(z scale + shift).
struct NormBackward {
  int64_t pixels, channels;
  const float* z;  // [pixels x channels], as all maps here: the convolution's result
  int64_t z_pixel;
  const float* grad;  // of the activation's result
  int64_t grad_pixel;
  const float* grad_too;  // added to grad, or null
  int64_t grad_too_pixel;
  Affine affine;
  const float* mean;  // [channels], or null: 0
  // norm_backward_sums adds to these: g, g (z - mean), and grad min(z scale + shift, 0), the gradient of PReLU's weight
  // (or null). sum_floats(channels) each.
  float *sum_g, *sum_gz, *sum_slope;
  // norm_backward: out = k (g - c0 - (z - mean) c1), with k, c0 and c1 [channels], or null: 1, 0, 0.
  // norm_backward_sums: out = g, or null. out may be grad or grad_too.
  const float *k, *c0, *c1;
  float* out;
  int64_t out_pixel;
};

// A strided float32 or bfloat16 map, for gather and scatter.
struct Strided {
  void* data;  // [rows x width x channels], in any order
  bool bf16;
  int64_t channel, row, pixel;  // strides in elements
};

// A sum per channel, over any number of calls: padded(channels) floats and as many compensations behind them, all zero
// at first.
constexpr int64_t sum_floats(int64_t channels) { return 2 * padded(channels); }
inline double sum_of(const float* sum, int64_t channels) { return (double)sum[0] - (double)sum[padded(channels)]; }

// Where a function has no struct, maps (x, y, z, out) are [pixels x channels], `sum` and `square` sum_floats(channels),
// and other vectors of channels [channels].
struct Kernels {
  const char* name;
  void (*gemm)(const Gemm&);
  void (*gemm_bf16)(const Gemm&);  // B is panels of pairs, bf16_pairs(k) rows of them; a_col is 1
  void (*release_tiles)();         // to be called when a thread has done with gemm_bf16
  void (*pack)(const Pack&);
  void (*fold)(const Fold&);
  void (*depthwise)(const Depthwise&);
  void (*depthwise_row)(const DepthwiseRow&);
  void (*depthwise_weight_grad)(const DepthwiseWeightGrad&);
  void (*depthwise_input_grad)(const DepthwiseInputGrad&);
  void (*axis_conv)(const AxisConv&);
  void (*axis_weight_grad)(const AxisWeightGrad&);
  // out = x * gate, [width x channels], by the small map's row `gate`; out may be x
  void (*multiply_upsampled)(const Upsampled&, const float* gate, int64_t gate_pixel, float* out, int64_t out_pixel);
  // sum += x * y: of all pixels that are with a pixel of the small map's row `sum`
  void (*sum_downsampled)(const Upsampled&, const float* y, int64_t y_pixel, float* sum, int64_t sum_pixel);
  // a row of [width x channels] between two rows of the small map
  void (*upsample_bilinear)(const Bilinear&);
  // the means of 2 x 2 pixels of two rows, [width x channels], and back: a quarter of each to both rows
  void (*pool_pairs)(const float* upper, const float* lower, int64_t x_pixel, int64_t width, int64_t channels,
                     float* out, int64_t out_pixel);
  void (*unpool_pairs)(const float* grad, int64_t grad_pixel, int64_t width, int64_t channels, float* upper,
                       float* lower, int64_t out_pixel);
  // `channels` floats a pixel are written; y may be z
  void (*affine)(const float* z, int64_t z_pixel, const Affine&, float* y, int64_t y_pixel, int64_t pixels,
                 int64_t channels);
  // y = x * scale + shift (null: 0), [channels] each; y may be x
  void (*scale_rows)(const float* x, int64_t x_pixel, const float* scale, const float* shift, float* y, int64_t y_pixel,
                     int64_t pixels, int64_t channels);
  // out = x + y; out may be either
  void (*add)(const float* x, int64_t x_pixel, const float* y, int64_t y_pixel, float* out, int64_t out_pixel,
              int64_t pixels, int64_t channels);
  // to = max(to, from); NaN is the largest
  void (*take_largest)(const float* from, int64_t from_pixel, float* to, int64_t to_pixel, int64_t pixels,
                       int64_t channels);
  // row j of each of n columns' packed panels, k rows long, times scale[j]: panel_floats(n, k), [k], panel_floats(n, k)
  void (*scale_panels)(const float* from, const float* scale, int64_t k, int64_t n, float* to);
  void (*sum)(const float* x, int64_t x_pixel, int64_t pixels, int64_t channels, float* sum);
  void (*sum_in_double)(const float* x, int64_t x_pixel, int64_t pixels, int64_t channels, float* sum);  // of gradients
  void (*sum_product)(const float* x, int64_t x_pixel, const float* y, int64_t y_pixel, int64_t pixels,
                      int64_t channels, float* sum);
  // sums of z - origin and of its square
  void (*moments)(const float* z, int64_t z_pixel, int64_t pixels, int64_t channels, const float* origin, float* sum,
                  float* square);
  void (*norm_backward_sums)(const NormBackward&);
  void (*norm_backward)(const NormBackward&);
  // y[i] = bias[i] + dot(w[i], x): w [rows x columns], x [columns], bias (null: 0) and y [rows]
  void (*matvec)(const float* w, int64_t rows, int64_t columns, const float* x, const float* bias, float* y);
  // a map into float32, [rows x width x channels], and back
  void (*gather)(const Strided& from, int64_t rows, int64_t width, int64_t channels, float* to, int64_t to_row,
                 int64_t to_pixel);
  void (*scatter)(const float* from, int64_t from_row, int64_t from_pixel, int64_t rows, int64_t width,
                  int64_t channels, const Strided& to);
  double (*fma_chain)(int64_t steps);  // runs 24 independent FMA chains; returns the FLOPs done
};

}  // namespace ghost

// Each instruction set's objects export their functions under its name.
#define GHOST_JOIN2(name, isa) ghost_##name##_##isa
#define GHOST_JOIN(name, isa) GHOST_JOIN2(name, isa)
#define GHOST_SYMBOL(name) GHOST_JOIN(name, GHOST_ISA)
