// What a kernel is told of its work, in plain integers: Python writes `Block`, the planner (plan.h) writes `Plan`.
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

/// A Ghost bottleneck, or with `primary` 0 a Ghost module alone, which is then the second one.
///
/// The channels of the expanded map come in chunks: `chunk` primary channels, then for each of the `multiplier` cheap
/// channels that a primary one has, as many again. In this order (lanes) are all vectors of the expanded map and the
/// rows of the second weight; lanes past the channels that there are have weights of zero, and so are zero.
struct Block {
  int32_t height, width, channels;                      // of x
  int32_t primary, multiplier, cheap_kernel, chunk;     // the first Ghost module
  int32_t kernel, stride;                               // the depthwise convolution between; kernel 0: none
  int32_t hidden, gate;                                 // the excitation; hidden 0: none
  int32_t primary2, multiplier2, kept2, cheap_kernel2;  // the second Ghost module
  int32_t shortcut;                                     // kernel of its depthwise one; 0: identity; -1: none
  Conv first, cheap, depthwise, reduce, expand, second, cheap2, shortcut_depthwise, shortcut_pointwise;
};
constexpr int kBlockNumbers = sizeof(Block) / sizeof(int32_t);

/// How a block is computed: tiles of the output, one a thread block, and what is where in shared memory.
struct Plan {
  int32_t tile_height, tile_width;  // of the output
  int32_t tiles_down, tiles_across;
  int32_t threads, columns;  // of the second product: warps side by side; the others share its rows
  int32_t kept;              // whether all chunks of the expanded tile stay in shared memory
  int32_t launches;          // 2: a squeeze of its own comes first
  int32_t shared;            // bytes; where the pieces begin, after kOwnBytes; x at 0
  int32_t primary_at, expanded_at, reduced_at, partial_at, means_at, scale_at, hidden_at;
  int32_t second_at, shortcut_depthwise_at, shortcut_at;  // after the last chunk, over what lay there

  GHOST_HOST_DEVICE int32_t tiles() const { return tiles_down * tiles_across; }
};
constexpr int kPlanNumbers = sizeof(Plan) / sizeof(int32_t);

}  // namespace ghost::cuda
