// What is to be computed, in plain integers: Python writes `Block`.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define GHOST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GHOST_HOST_DEVICE inline
#endif

namespace ghost::cuda {

/// A convolution: where its parameters begin in the packed matrices or vectors (-1: it has none of these), and the code
/// of its activation (ghost_ops/backends/activation.py).
struct Conv {
  int32_t weight, bias, slopes, act;
};

/// What a block of `linear` reads: the channel means of the block before, or its features.
enum Linear : int32_t { kNotLinear, kOfMeans, kOfFeatures };

/// A Ghost bottleneck, or with `primary` 0 a Ghost module alone, which is then the second one.
///
/// A cheap convolution without a multiplier takes the place of the primary channels (RepGhost). A bottleneck whose
/// first convolution has no weight begins with the depthwise one, and `primary` are its input's channels.
///
/// With `window` its input is an image, and the 1x1 convolution is one of `window` x `window`: `channels` are all
/// numbers that a pixel of the result reads, channel by channel, and `height` and `width` are the result's. With
/// `linear` it is a linear layer on features, and its map has one pixel.
///
/// Channels of the expanded map are in the order of lanes: the primary channels, up to a multiple of 8 of them, then
/// for each of the `multiplier` cheap channels that a primary one has, as many again. In this order are all vectors of
/// the expanded map and the inputs of the second weight; lanes past the channels that there are have weights of zero.
struct Block {
  int32_t height, width, channels;                      // of x
  int32_t primary, multiplier, cheap_kernel;            // the first Ghost module
  int32_t kernel, stride;                               // the depthwise convolution between; kernel 0: none
  int32_t hidden, gate;                                 // the excitation; hidden 0: none
  int32_t primary2, multiplier2, kept2, cheap_kernel2;  // the second Ghost module
  int32_t shortcut;                                     // kernel of its depthwise one; 0: identity; -1: none
  int32_t window, window_stride, window_padding;        // of a dense convolution; window 0: it is 1x1
  int32_t image_channels, image_height, image_width;    // that it reads
  int32_t linear;                                       // `Linear`
  Conv first, cheap, depthwise, reduce, expand, second, cheap2, shortcut_depthwise, shortcut_pointwise;
};
constexpr int kBlockNumbers = sizeof(Block) / sizeof(int32_t);

constexpr int kMostWindow = 63;                       // a side of a dense convolution's window
constexpr int kRows = 16, kColumns = 8, kDepth = 16;  // of a warp's product
constexpr int kWeightTile = kDepth * kColumns;        // weights that one product reads
constexpr int kSpareTiles = 3;  // of eight outputs, past the last of a weight, that kernels may read and do not use
constexpr int kTapLanes = 32;   // of a depthwise weight in float32: so many lanes of a tap, then the next tap
constexpr int kOctet = 8;       // lanes of a depthwise convolution in half precision that are computed at once

GHOST_HOST_DEVICE int cdiv(int a, int b) { return (a + b - 1) / b; }
GHOST_HOST_DEVICE int up(int n, int to) { return cdiv(n, to) * to; }
GHOST_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
GHOST_HOST_DEVICE int most(int a, int b) { return a > b ? a : b; }

GHOST_HOST_DEVICE int out_size(int in, int stride) { return (in - 1) / stride + 1; }
GHOST_HOST_DEVICE int out_height(const Block& b) { return out_size(b.height, b.stride); }
GHOST_HOST_DEVICE int out_width(const Block& b) { return out_size(b.width, b.stride); }

/// Lanes of a convolution's result: eight outputs of a product are made at once.
GHOST_HOST_DEVICE int lanes_of(int channels) { return up(channels, kColumns); }
/// Elements of a depthwise weight in half precision that a lane has: one after the other, 8 bytes at a time.
GHOST_HOST_DEVICE int taps_of_lane(int kernel) { return up(kernel * kernel, 4); }
/// Floats of a depthwise weight in float32, and where a lane's first tap is.
GHOST_HOST_DEVICE int64_t taps_of(int kernel, int lanes) { return int64_t{kernel} * kernel * up(lanes, kTapLanes); }
GHOST_HOST_DEVICE int first_tap(int kernel, int lane) {
  return lane / kTapLanes * (kernel * kernel * kTapLanes) + lane % kTapLanes;
}
/// Whether a bottleneck begins with its depthwise convolution.
GHOST_HOST_DEVICE bool is_separable(const Block& b) { return b.primary && b.first.weight < 0; }
/// Lanes of the expanded map.
GHOST_HOST_DEVICE int lanes(const Block& b) { return lanes_of(b.primary) * (1 + b.multiplier); }

}  // namespace ghost::cuda
