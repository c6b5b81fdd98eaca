// Scratch memory that a thread keeps: fresh memory is slow (docs/performance/cpu.md), so it is taken once and reused.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"

namespace ghost {

#ifdef GHOST_APART  // in builds with a sanitizer: every piece is a block of its own, whose ends it sees
constexpr bool kApart = true;
#else
constexpr bool kApart = false;
#endif

class Arena {
 public:
  static Arena& of_thread() {
    static thread_local Arena arena;
    return arena;
  }

 private:
  friend class Scratch;
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  struct Piece {
    std::unique_ptr<float, Free> data;
    int64_t size, used;
  };
  std::vector<Piece> blocks_;
  int64_t wanted_ = 0;  // floats of all blocks that there were at once
};

/// Takes memory from the thread's arena and gives all of it back at the end of the scope. Scopes nest.
class Scratch {
 public:
  Scratch() : arena_(Arena::of_thread()), blocks_(arena_.blocks_.size()) {
    if (blocks_) used_ = arena_.blocks_.back().used;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    auto& blocks = arena_.blocks_;
    // A call outgrew the arena, and nothing is in use any more: one block for all next time.
    if (!kApart && blocks_ <= 1 && used_ == 0 && !blocks.empty() && arena_.wanted_ > blocks[0].size) {
      blocks.clear();
      grow(arena_.wanted_);
    }
    while (blocks.size() > (blocks_ ? blocks_ : 1)) blocks.pop_back();
    if (!blocks.empty()) blocks.back().used = used_;
  }

  /// n floats on a cache line's boundary, not initialised, with a vector's width of slack behind them.
  float* floats(int64_t n) {
    n = (n + 31) / 16 * 16;
    auto& blocks = arena_.blocks_;
    if (kApart || blocks.empty() || blocks.back().used + n > blocks.back().size) grow(n);
    auto& b = blocks.back();
    float* p = b.data.get() + b.used;
    b.used += n;
    return p;
  }
  float* zeros(int64_t n) {
    float* p = floats(n);
    for (int64_t i = 0; i < n; i++) p[i] = 0.f;
    return p;
  }

 private:
  void grow(int64_t n) {
    constexpr int64_t kLeast = 1 << 16;
    const int64_t size = n < kLeast && !kApart ? kLeast : n;
    auto* p = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
    if (!p) throw std::bad_alloc();
    advise_huge_pages(p, size * static_cast<int64_t>(sizeof(float)));
    arena_.blocks_.push_back({std::unique_ptr<float, Arena::Free>(p), size, 0});
    int64_t all = 0;
    for (const auto& b : arena_.blocks_) all += b.size;
    arena_.wanted_ = std::max(arena_.wanted_, all);
  }

  Arena& arena_;
  size_t blocks_;
  int64_t used_ = 0;
};

}  // namespace ghost
