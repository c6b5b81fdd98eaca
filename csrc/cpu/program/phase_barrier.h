// The threads of one parallel region working through a list of phases together.
//
// Every phase is cut into the same number of shares, and begins when all shares of the one before are done. A thread
// prefers the share of its own number, so that what it made is still in its cache, and takes any other that has
// not begun. So a thread that comes late, or never, costs time but no result: the others do its work.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "abi_threads.h"

namespace ghost {

constexpr int64_t kMostShares = 64;

class PhaseBarrier {
 public:
  PhaseBarrier(int64_t phases, int64_t shares) : phases_(phases), shares_(shares), state_(new Phase[phases]) {}

  /// run(phase, share) for every phase and share, on torch's threads, and at_end() on each when all is done. They must
  /// not throw: the others would wait.
  template <class Run>
  void work(const Run& run, void (*at_end)()) {
    abi::parallel_for(shares_, 1, [&](int64_t begin, int64_t) {
      join(begin, run);
      at_end();
    });
  }

 private:
  struct alignas(64) Phase {
    std::atomic<uint64_t> begun{0};
    std::atomic<int64_t> done{0};
  };

  template <class Run>
  void join(int64_t own, const Run& run) {
    for (int64_t p = 0; p < phases_; p++) {
      Phase& phase = state_[p];
      for (int64_t i = 0; i < shares_; i++) {
        const int64_t share = (own + i) % shares_;
        const uint64_t bit = uint64_t{1} << share;
        if (phase.begun.load(std::memory_order_relaxed) & bit) continue;
        if (phase.begun.fetch_or(bit, std::memory_order_relaxed) & bit) continue;
        run(p, share);
        phase.done.fetch_add(1, std::memory_order_release);
      }
      for (int64_t spins = 0; phase.done.load(std::memory_order_acquire) < shares_; spins++) {
        if (spins < kSpins)
          pause();
        else
          sched_yield();
      }
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  static constexpr int64_t kSpins = 20000;
  int64_t phases_, shares_;
  std::unique_ptr<Phase[]> state_;
};

}  // namespace ghost
