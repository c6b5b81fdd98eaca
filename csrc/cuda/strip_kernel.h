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

template <class T>
GHOST_DEVICE void begin_loads(const Work<T>& w) {
#pragma unroll 1
  for (int i = own_zero(); i < w.launch.stages; i++)
    if (w.launch.stage[i].kind == Kind::load) load(w, w.launch.stage[i]);
}

template <class T>
GHOST_DEVICE void run_stages(const Work<T>& w) {
  fill_padding(w);
#pragma unroll 1
  for (int i = own_zero(); i < w.launch.stages; i++) {
    const Stage& g = w.launch.stage[i];
    if (g.kind == Kind::load || (g.once && !w.step.first)) continue;
    run_stage(w, g);
    sync_block();
  }
}

/// The step after the one that is loaded: of the same image, or of the next one that is this thread block's.
GHOST_DEVICE void advance(Shared& s, const Launch& launch, int top, int bottom) {
  s.now = s.next;
  s.next.from = s.next.last ? top : s.next.to, s.next.first = s.next.last;
  if (s.next.last) s.next.image += rows_of_blocks();
  s.next.to = least(s.next.from + launch.step, bottom), s.next.last = s.next.to == bottom;
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
  if (thread() == 0) s.next.image = row_of_blocks() - rows_of_blocks(), s.next.last = 1;  // as if one had ended
  wait_for_earlier_kernels();
  let_next_kernel_begin();
#pragma unroll 1
  do {
    wait_for_copies();
    sync_block();
    if (thread() == 0) {
      const int top = block() / launch.strips * launch.band;
      advance(s, launch, top, least(top + launch.band, launch.height));
    }
    sync_block();
    // The next rows are loaded meanwhile, but for those of another image: there is room for one.
    const int loads_at = s.now.last;
#pragma unroll 1
    for (int turn = own_zero(); turn < 2; turn++) {
      if (turn == loads_at) {
        if (s.next.image < launch.images) begin_loads(Work<T>{launch, a, shared, s.next});
      } else if (s.now.image >= 0) {
        run_stages(Work<T>{launch, a, shared, s.now});
      }
    }
  } while (s.next.image < launch.images);
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
