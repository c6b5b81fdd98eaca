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
#include <map>
#include <string>
#include <string_view>
#include <vector>

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
  unsigned char* rows[kWarp];
  uint32_t* words[kWarp];
  const uint32_t *a[kWarp], *b[kWarp];
  const float* c[kWarp];
  float* sums[kWarp];
  int bits[kWarp];
  std::string_view file;
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
/// The same for the warp: the last of its lanes does for all what they came for.
void meet(void (*what)(Exchange&));
Exchange& exchange();

/// Counts in how many cycles the banks of shared memory give or take the rows of 8 x 8 matrices: eight rows of 16 bytes
/// need one where they are in different banks, as many as there are different rows in the same banks else.
struct Banks {
  int64_t matrices, cycles;
};
extern bool counts_banks;
extern std::map<std::pair<std::string_view, std::string_view>, Banks> banks;  // by the file and kind of the access
void count_banks(std::string_view file, std::string_view kind, unsigned char* const* rows, int matrices);

enum Order { kForward, kBackward, kRandom };

/// What a thread is about to access must lie in shared memory.
void expect_shared(const void* begin, int bytes);

/// A copy that this thread has begun, and which is made when it waits for its copies.
void begin_copy(void* to, const void* from, int bytes);
void finish_copies();

/// Runs a kernel over a grid of blocks x rows x layers; kRandom is another order after every barrier. Shared memory is
/// full of NaNs before every block.
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

template <class V>
V opaque(V value) {
  return value;
}
inline float other_register(float value) { return value; }
inline uint32_t pick_bytes(uint32_t word, uint32_t which) {
  uint32_t made = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t byte = which >> 4 * i & 7;
    if (byte < 4) made |= (word >> 8 * byte & 0xff) << 8 * i;
  }
  return made;
}
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

namespace emulated {
/// As widen, from a table.
inline float widened(bfloat16 v) { return widen(v); }
inline float widened(float16 v) {
  static const auto table = [] {
    std::vector<float> all(1 << 16);
    for (size_t i = 0; i < all.size(); i++) all[i] = widen(float16{static_cast<uint16_t>(i)});
    return all;
  }();
  return table[v.bits];
}
}  // namespace emulated

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

template <class T>
uint32_t add_words(T, uint32_t a, uint32_t b) {
  const auto half = [](uint32_t bits, int i) { return widen(T{static_cast<uint16_t>(bits >> 16 * i)}); };
  return pack<T>(half(a, 0) + half(b, 0), half(a, 1) + half(b, 1));
}
template <class T>
uint32_t multiply_words(T, uint32_t a, uint32_t b) {
  const auto half = [](uint32_t bits, int i) { return widen(T{static_cast<uint16_t>(bits >> 16 * i)}); };
  return pack<T>(half(a, 0) * half(b, 0), half(a, 1) * half(b, 1));
}

/// Lane l has two elements, from the (l % 4) x 2nd on, of row l / 4 of each matrix.
template <int N>
void load_matrices(uint32_t (&a)[N], const void* row, const char* file = __builtin_FILE()) {
  auto& e = emulated::exchange();
  const int lane = thread() & 31;
  e.rows[lane] = static_cast<unsigned char*>(const_cast<void*>(row)), e.words[lane] = a, e.file = file;
  if (lane < 8 * N) emulated::expect_shared(row, 16);
  emulated::meet([](emulated::Exchange& e) {
    for (int lane = 0; lane < emulated::kWarp; lane++)
      for (int i = 0; i < N; i++) std::memcpy(&e.words[lane][i], e.rows[8 * i + lane / 4] + lane % 4 * 4, 4);
    if (emulated::counts_banks) emulated::count_banks(e.file, "load", e.rows, N);
  });
}

inline void store_matrices(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                           const char* file = __builtin_FILE()) {
  auto& e = emulated::exchange();
  const int lane = thread() & 31;
  uint32_t words[4] = {a, b, c, d};
  e.rows[lane] = static_cast<unsigned char*>(row), e.words[lane] = words, e.file = file;
  emulated::expect_shared(row, 16);
  emulated::meet([](emulated::Exchange& e) {
    for (int lane = 0; lane < emulated::kWarp; lane++)
      for (int i = 0; i < 4; i++) std::memcpy(e.rows[8 * i + lane / 4] + lane % 4 * 4, &e.words[lane][i], 4);
    if (emulated::counts_banks) emulated::count_banks(e.file, "store", e.rows, 4);
  });
}

inline float value_across(float v, int bits) {
  auto& e = emulated::exchange();
  float out;
  e.c[thread() & 31] = &v, e.sums[thread() & 31] = &out, e.bits[thread() & 31] = bits;
  emulated::meet([](emulated::Exchange& e) {
    for (int lane = 0; lane < emulated::kWarp; lane++) *e.sums[lane] = *e.c[lane ^ e.bits[lane]];
  });
  return out;
}

/// 16 x K by K x 8: of a, lane l has rows l / 4 and that + 8, of b column l / 4, of the sums two columns of both rows.
template <class T, int K>
void multiply_add(emulated::Exchange& e) {
  float a[16][K], b[K][8], sums[16][8];
  const auto half = [](uint32_t bits, int i) { return emulated::widened(T{static_cast<uint16_t>(bits >> 16 * i)}); };
  for (int lane = 0; lane < emulated::kWarp; lane++) {
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 2; i++) {
      for (int k = 0; k < K / 8; k++) {
        b[8 * k + column + i][row] = half(e.b[lane][k], i);
        for (int below = 0; below < 2; below++)
          a[row + 8 * below][8 * k + column + i] = half(e.a[lane][2 * k + below], i);
      }
      sums[row][column + i] = e.c[lane][i], sums[row + 8][column + i] = e.c[lane][2 + i];
    }
  }
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < K; k++)
      for (int column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < emulated::kWarp; lane++)
    for (int i = 0; i < 4; i++) e.sums[lane][i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
template <class T, int N>
void multiply_add_of(float (&sum)[4], const uint32_t (&a)[N], const uint32_t* b, const float (&c)[4]) {
  auto& e = emulated::exchange();
  const int lane = thread() & 31;
  e.a[lane] = a, e.b[lane] = b, e.c[lane] = c, e.sums[lane] = sum;
  emulated::meet(multiply_add<T, 4 * N>);
}
template <class T>
void multiply_add(T, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  const uint32_t b[] = {b0, b1};
  multiply_add_of<T>(sum, a, b, c);
}
template <class T>
void multiply_add(T, float (&sum)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4]) {
  multiply_add_of<T>(sum, a, &b, c);
}

}  // namespace ghost::cuda
