// Threads: torch's own pool, as torch.set_num_threads left it. See abi.h.
#pragma once
#include <algorithm>
#include <atomic>
#include <exception>

#include "abi.h"

extern "C" {
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void* context);
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc body, void* context);
AOTITorchError torch_get_num_threads(uint32_t* threads);
AOTITorchError torch_get_thread_idx(uint32_t* thread);
}

namespace ghost::abi {

/// Runs body(begin, end) over [0, n) on torch's threads, each getting at least `grain` (as at::parallel_for does). What
/// the body throws comes out of this call: the first of them, once all threads are done.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (n <= grain) return body(int64_t{0}, n);
  struct Context {
    const Body& body;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};
  } context{body};
  const ParallelFunc run = [](int64_t begin, int64_t end, void* opaque) {
    auto& context = *static_cast<Context*>(opaque);
    try {
      context.body(begin, end);
    } catch (...) {
      if (!context.failed.exchange(true)) context.error = std::current_exception();
    }
  };
  check(torch_parallel_for(0, n, std::max<int64_t>(grain, 1), run, &context), "parallel_for");
  if (context.error) std::rethrow_exception(context.error);
}

/// The size of torch's pool of threads.
inline int64_t num_threads() {
  uint32_t threads = 1;
  check(torch_get_num_threads(&threads), "num_threads");
  return threads;
}

/// Which of them this is, within parallel_for: 0 to num_threads() - 1.
inline int64_t thread_index() {
  uint32_t thread = 0;
  check(torch_get_thread_idx(&thread), "thread_index");
  return thread;
}

}  // namespace ghost::abi
