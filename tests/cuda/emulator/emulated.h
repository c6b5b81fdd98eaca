// A CUDA block on the CPU, for tests: what csrc/cuda/device.h asks of a device, each thread a fiber.
//
// A fiber runs until it comes to a barrier of its block or warp; who runs next is decided by an order that the test
// picks, so that a barrier that is missing is likely to show as another result. Threads that wait at different
// barriers, and lanes of a warp at different of its operations, are an error. Products of a warp exchange fragments as
// the PTX ISA lays them out. It shows what kernels compute, not what a device does: no caches, no memory model, no
// timing.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#define GHOST_DEVICE inline

namespace ghost::cuda {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

namespace emulated {

constexpr int kWarp = 32;

/// What lanes lay before their warp.
struct Exchange {
  const void* rows[kWarp];
  uint32_t a[kWarp][4], b[kWarp][2];
};

/// A line of the kernels.
struct Place {
  std::string_view file;
  int line;
  bool operator==(const Place&) const = default;
};
/// The barrier at the end of this path does nothing, to see that tests notice.
extern std::string left_out_file;
extern int left_out_line;

extern int thread, threads, block, row_of_blocks, rows_of_blocks, layer_of_blocks;

/// Returns once every thread of the block has come to this place.
void wait_for_block(Place place);
/// The same for the warp, and what its lanes do there; and the warp's exchange, another one each time of two, so that
/// who is late reads what was meant for it.
enum class Meeting { load, multiply };
void wait_for_warp(Meeting what);
Exchange& exchange();

enum Order { kForward, kBackward, kRandom };

/// What a thread is about to access must lie in shared memory.
void expect_shared(const void* begin, int bytes);

/// A copy that this thread has begun, and which is made when it waits for its copies.
void begin_copy(void* to, const void* from, int bytes);
void finish_copies();

/// Runs a kernel over a grid of blocks x rows x layers; kRandom is another order after every barrier. Shared memory is full of
/// NaNs before every block.
///
/// Returns null, or what went wrong: threads that wait at different barriers, a read or write beside shared memory, or
/// a copy that nobody waited for.
const char* run(int64_t blocks, int64_t rows, int64_t layers, int threads, int shared, Order order, uint32_t seed,
                const std::function<void(unsigned char*)>& kernel);

}  // namespace emulated

inline int thread() { return emulated::thread; }
inline int own_zero() { return 0; }
inline int threads() { return emulated::threads; }
inline int block() { return emulated::block; }
inline int row_of_blocks() { return emulated::row_of_blocks; }
inline int rows_of_blocks() { return emulated::rows_of_blocks; }
inline int layer_of_blocks() { return emulated::layer_of_blocks; }
inline void sync_block(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (line == emulated::left_out_line && std::string_view(file).ends_with(emulated::left_out_file)) return;
  emulated::wait_for_block({file, line});
}
template <class V>
V constant(const V* p) {
  return *p;
}

inline int opaque(int value) { return value; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

template <int kBytes>
void copy_async(void* to, const void* from) {
  emulated::expect_shared(to, kBytes);
  emulated::begin_copy(to, from, kBytes);
}
inline void wait_for_copies() { emulated::finish_copies(); }
inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_begin() {}

inline float clamp(float v, float low, float high) { return v < low ? low : v > high ? high : v; }
inline float add_product(float a, float b, float sum) { return std::fma(a, b, sum); }

inline float widen(float v) { return v; }
inline float widen(float16 v) {
  _Float16 half;
  std::memcpy(&half, &v, 2);
  return static_cast<float>(half);
}
inline float widen(bfloat16 v) {
  const uint32_t bits = uint32_t{v.bits} << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

template <class T>
T narrow(float v);
template <>
inline float narrow<float>(float v) {
  return v;
}
template <>
inline float16 narrow<float16>(float v) {
  const _Float16 half = static_cast<_Float16>(v);
  float16 out;
  std::memcpy(&out, &half, 2);
  return out;
}
template <>
inline bfloat16 narrow<bfloat16>(float v) {
  if (std::isnan(v)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class T>
uint32_t pack(float first, float second) {
  return narrow<T>(first).bits | uint32_t{narrow<T>(second).bits} << 16;
}

template <class T>
struct alignas(8) TwoFloats {
  float first, second;
};
template <class T>
auto plain_pair(float first, float second) {
  if constexpr (sizeof(T) == 2)
    return pack<T>(first, second);
  else
    return TwoFloats<T>{first, second};
}
template <class T>
auto relu_pair(float first, float second) {
  return plain_pair<T>(clamp(first, 0.f, INFINITY), clamp(second, 0.f, INFINITY));
}
template <class T>
struct Bounds {
  float low, high;
  Bounds(float low, float high) : low(low), high(high) {}
  auto operator()(float first, float second) const {
    const auto bounded = [&](float v) { return narrow<T>(clamp(widen(narrow<T>(v)), low, high)); };
    return plain_pair<T>(widen(bounded(first)), widen(bounded(second)));
  }
};

inline float exponential(float v) { return std::exp(v); }

inline void load_matrices(uint32_t (&a)[4], const void* row) {
  auto& e = emulated::exchange();
  const int lane = thread() & 31;
  e.rows[lane] = row;
  emulated::expect_shared(row, 16);
  emulated::wait_for_warp(emulated::Meeting::load);
  for (int i = 0; i < 4; i++) std::memcpy(&a[i], static_cast<const char*>(e.rows[8 * i + lane / 4]) + lane % 4 * 4, 4);
}

template <class T>
void multiply_add(T, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  auto& e = emulated::exchange();
  const int lane = thread() & 31;
  std::memcpy(e.a[lane], a, sizeof a), std::memcpy(e.b[lane], b, sizeof b);
  emulated::wait_for_warp(emulated::Meeting::multiply);
  const auto half = [](uint32_t bits, int i) { return widen(T{static_cast<uint16_t>(bits >> 16 * i)}); };
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const int group = k % 8 / 2;
      c[i] +=
          half(e.a[row % 8 * 4 + group][row / 8 + 2 * (k / 8)], k % 2) * half(e.b[column * 4 + group][k / 8], k % 2);
    }
  }
}

}  // namespace ghost::cuda
