// The kernel: a thread block goes down its part of every image, some rows of the output at a step, stage by stage.
#pragma once
#include "depthwise.h"
#include "lanes.h"
#include "products.h"

namespace ghost::cuda {

template <class T>
GHOST_DEVICE void run_stage(const Work<T>& w, const Stage& g) {
  switch (g.kind) {
    case Kind::load:
      return;
    case Kind::product:
      return product(w, g);
    case Kind::depthwise:
      return depthwise(w, g);
    case Kind::activate:
      return activate(w, g);
    case Kind::scale:
      return scale(w, g);
    case Kind::sum:
      return sum(w, g);
    case Kind::mean:
      return mean(w, g);
    case Kind::store:
      return store(w, g);
    case Kind::join:
      return join(w, g);
  }
}

/// One of two turns of a step. At the first one all rows of the step that follows are loaded if that is of the same
/// image; those of another one are at the second turn, each when nothing needs its map any more. Then come the stages.
template <class T>
GHOST_DEVICE void run_turn(const Work<T>& now, const Work<T>& next, int turn) {
  const bool runs = turn && now.step.image >= 0, has_next = next.step.image < next.launch.images;
  const bool loads = has_next && turn == (now.step.last && now.step.image >= 0);
#pragma unroll 1
  for (int i = own_zero(); i < (runs ? now.launch.maps : 0); i++)
    if (now.map(i).padded) fill_padding(now, now.map(i));
#pragma unroll 1
  for (int i = own_zero(); i < now.launch.stages; i++) {
    const Stage& g = now.launch.stage[i];
    if (g.kind == Kind::load) {
      if (loads) load(next, g);
    } else if (runs && (!g.once || now.step.first)) {
      run_stage(now, g);
    }
    if (runs && g.sync) sync_block();
  }
}

/// The step after another one: of the same image, or of the next one that is this thread block's.
GHOST_DEVICE void advance(Step& next, const Step& now, const Launch& launch) {
  const int top = block() / launch.strips * launch.band, bottom = least(top + launch.band, launch.height);
  next.from = now.last ? top : now.to, next.first = now.last;
  next.image = now.image + (now.last ? rows_of_blocks() : 0);
  next.to = least(next.from + launch.step, bottom), next.last = next.to == bottom;
}

template <class T>
GHOST_DEVICE void strip(const Launch& launch, const Arguments<T>& a, unsigned char* shared) {
  // Zeros beside the columns and past the lanes, which nothing overwrites.
#pragma unroll 1
  for (int i = thread(); i < launch.shared / 16; i += threads()) reinterpret_cast<Words*>(shared)[i] = Words{};
  Shared& s = *reinterpret_cast<Shared*>(shared);
  sync_block();
  if (thread() < launch.maps) {
    const int left = block() % launch.strips * launch.strip;
    s.columns[thread()] = columns_of(launch.map[thread()], left, least(left + launch.strip, launch.width));
  }
  if (thread() == 0) s.steps[0].image = row_of_blocks() - rows_of_blocks(), s.steps[0].last = 1;  // as if one had ended
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  // Two turns of each of the three steps that are known: one that slow threads may still compute, this one and the
  // next.
#pragma unroll 1
  for (int turn = own_zero();; turn = turn == 5 ? 0 : turn + 1) {
    const Step& now = s.steps[turn / 2];
    Step& next = s.steps[turn / 2 == 2 ? 0 : turn / 2 + 1];
    if (turn % 2 == 0) {
      wait_for_copies();
      if (thread() == 0) advance(next, now, launch);
      sync_block();
    }
    run_turn(Work<T>{launch, a, shared, now}, Work<T>{launch, a, shared, next}, turn % 2);
    if (turn % 2 && next.image >= launch.images) return;
  }
}

/// Means of a Ghost module's output from the sums of its parts: one thread a channel of an image.
template <class T>
GHOST_DEVICE void means(T* out, const float* sums, int64_t images, int parts, int channels, int primary, int multiplier,
                        float inverse_pixels) {
  const int64_t i = int64_t{block()} * threads() + thread();
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  if (i >= images * channels) return;
  const int c = static_cast<int>(i % channels), group = lanes_of(primary), all = group * (1 + multiplier);
  const int made = c - primary, lane = made < 0 ? c : group * (1 + made % multiplier) + made / multiplier;
  const float* from = sums + i / channels * parts * all + lane;
  float sum = 0.f;
  for (int t = 0; t < parts; t++) sum += from[int64_t{t} * all];
  out[i] = narrow<T>(sum * inverse_pixels);
}

/// Packed parameters as kernels read them: out[i] = packed[index[i]], 0 where the index is -1; the first `count` in the
/// maps' dtype.
template <class T>
GHOST_DEVICE void gather(T* matrices, float* vectors, const float* packed, const int32_t* index, int64_t count,
                         int64_t all) {
  const int64_t i = int64_t{block()} * threads() + thread();
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  if (i >= all) return;
  const float v = index[i] < 0 ? 0.f : packed[index[i]];
  if (i < count)
    matrices[i] = narrow<T>(v);
  else
    vectors[i - count] = v;
}

}  // namespace ghost::cuda
