// Memory for large maps, kept for the next ones.
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>

namespace ghost {

/// One region of addresses, of which pages are taken and given back in any order. What is given back joins its free
/// neighbours, so that the memory of many small maps serves for a large one, and stays resident: in use and kept are
/// together hardly more than what was once in use at the same time. Safe to fork beside.
class Pool {
 public:
  static Pool& of_process();

  /// At least `bytes`, not initialised, on a cache line's boundary; null where there is no more, and always where the
  /// process has a limit on addresses (ulimit -v).
  char* take(int64_t bytes);
  /// Takes back what `take(bytes)` returned.
  void give(char* data, int64_t bytes);

  /// Returns to the system all that is kept.
  void empty();
  int64_t kept_bytes();
  /// How much may be kept, from now on. 1 GiB by default.
  static void keep_most(int64_t bytes) { most_ = bytes; }
  /// For tests: whether memory is filled with NaNs before it is handed out.
  void poison(bool on) { poison_ = on; }

 private:
  struct Free {
    int64_t bytes;
    bool kept;  // else the system has its pages
  };
  using Spans = std::map<int64_t, Free>;  // by where they begin in the region

  Pool();
  int64_t find(int64_t bytes) const;
  bool open(int64_t end);
  void claim(int64_t begin, int64_t end);
  void add(int64_t begin, Free span);
  void cut(int64_t most);

  std::mutex mutex_;
  Spans free_;  // of one kind, no two touch
  char* base_ = nullptr;
  int64_t reserved_ = 0, end_ = 0;  // of the region, and of what was ever in use
  int64_t used_ = 0, kept_ = 0, peak_ = 0;
  static inline std::atomic<int64_t> most_{int64_t{1} << 30};
  std::atomic<bool> poison_{false};
};

/// Asks for huge pages where a large block is: fresh memory is mapped 4 KB at a time, and weights that are read once
/// a call miss the TLB (docs/performance/cpu.md).
void advise_huge_pages(const void* data, int64_t bytes);

}  // namespace ghost
