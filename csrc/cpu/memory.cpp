#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ghost {
namespace {

constexpr int64_t kHuge = 2 << 20, kLargeMap = 4 * kHuge;
constexpr int64_t kLeast = 32 << 10;      // bytes; smaller blocks malloc keeps by itself
constexpr int64_t kNeverKept = 32 << 20;  // and from here on glibc's keeps none, whatever its other settings adapt to
constexpr int64_t kMostMiB = 1024;        // kept, unless GHOST_OPS_KEEP_MB says otherwise

int64_t most_kept() {
  const char* wanted = std::getenv("GHOST_OPS_KEEP_MB");
  if (!wanted || !*wanted) return kMostMiB << 20;
  char* end;
  const int64_t most = std::strtoll(wanted, &end, 10);
  if (*end || most < 0)
    abi::fail("GHOST_OPS_KEEP_MB: expected a number of MiB, 0 to keep nothing, got " + std::string(wanted));
  return most << 20;
}

struct Free {
  void operator()(char* p) const { std::free(p); }
};

struct Block {
  std::unique_ptr<char, Free> data;
  int64_t bytes;

  explicit Block(int64_t size) : bytes(size) {
    const int64_t align = size >= kLargeMap ? kHuge : 64;
    data.reset(static_cast<char*>(std::aligned_alloc(align, (size + align - 1) / align * align)));
    if (!data) throw std::bad_alloc();
    advise_huge_pages(data.get(), size);
  }
};
using Blocks = std::vector<std::unique_ptr<Block>>;

/// Blocks that no tensor needs, oldest first. What tensors have and what is kept are together never more than what
/// tensors once had at the same time. Nobody waits for the lock: who does not get it asks malloc, so that a process
/// that was forked while another thread held it does not hang.
class Kept {
 public:
  static Kept& all() {
    static Kept* kept = new Kept;  // for ever: a tensor may be freed after every static is gone
    return *kept;
  }

  /// A block of at least `bytes`; of those that are kept, one of `most` at the most.
  std::unique_ptr<Block> take(int64_t bytes, int64_t most) {
    std::unique_ptr<Block> found;
    Blocks surplus;  // freed after the lock
    if (const std::unique_lock lock{mutex_, std::try_to_lock}) {
      auto best = blocks_.end();
      for (auto b = blocks_.begin(); b != blocks_.end(); ++b)
        if ((*b)->bytes >= bytes && (*b)->bytes <= most && (best == blocks_.end() || (*b)->bytes <= (*best)->bytes))
          best = b;
      if (best != blocks_.end()) {
        found = std::move(*best);
        blocks_.erase(best);
        kept_ -= found->bytes;
      }
      const int64_t used = used_ += found ? found->bytes : bytes;
      peak_ = std::max(peak_, used);
      trim(peak_ - used, surplus);
    } else {
      used_ += bytes;
    }
    surplus.clear();
    if (!found) {
      try {
        found = std::make_unique<Block>(bytes);
      } catch (...) {
        used_ -= bytes;
        throw;
      }
    }
    if (poison_) std::memset(found->data.get(), 0xff, found->bytes);
    return found;
  }

  void give(std::unique_ptr<Block> block) {
    Blocks surplus;
    used_ -= block->bytes;
    if (const std::unique_lock lock{mutex_, std::try_to_lock}) {
      kept_ += block->bytes;
      blocks_.push_back(std::move(block));
      trim(most_, surplus);
    }
  }

  void empty() {
    Blocks surplus;
    const std::lock_guard lock(mutex_);
    trim(0, surplus);
    peak_ = used_;
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    return kept_;
  }

  void poison(bool on) { poison_ = on; }

 private:
  void trim(int64_t most, Blocks& surplus) {
    auto end = blocks_.begin();
    for (; end != blocks_.end() && kept_ > most; ++end) kept_ -= (*end)->bytes;
    surplus.insert(surplus.end(), std::make_move_iterator(blocks_.begin()), std::make_move_iterator(end));
    blocks_.erase(blocks_.begin(), end);
  }

  std::mutex mutex_;
  Blocks blocks_;
  int64_t kept_ = 0, peak_ = 0;
  const int64_t most_ = most_kept();
  std::atomic<int64_t> used_{0};
  std::atomic<bool> poison_{false};
};

}  // namespace

namespace {

abi::Tensor of_pytorch(std::initializer_list<int64_t> sizes, abi::DType dtype, abi::Layout layout) {
  abi::Tensor t = abi::empty(sizes, dtype, layout);
  if (t.numel()) advise_huge_pages(t.data<char>(), t.numel() * abi::size_of(dtype));
  return t;
}

/// From `least` bytes on over a kept block, or a new one that will be kept.
abi::Tensor recycled(std::initializer_list<int64_t> sizes, abi::DType dtype, abi::Layout layout, int64_t least,
                     bool any_size = false) {
  const int64_t dim = static_cast<int64_t>(sizes.size());
  int64_t strides[abi::kMaxDim];
  const int64_t bytes = abi::dense_strides(sizes.begin(), dim, layout, strides) * abi::size_of(dtype);
  const bool is_empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  if (bytes < least || is_empty || !torch_from_blob) return of_pytorch(sizes, dtype, layout);
  std::unique_ptr<Block> block = Kept::all().take(bytes, any_size ? INT64_MAX : bytes + bytes / 4);
  const auto give = [](void*, void* block) { Kept::all().give(std::unique_ptr<Block>(static_cast<Block*>(block))); };
  try {
    abi::Tensor t = abi::over(block->data.get(), sizes.begin(), strides, dim, dtype, give, block.get());
    block.release();
    return t;
  } catch (...) {
    Kept::all().give(std::move(block));
    throw;
  }
}

}  // namespace

abi::Tensor new_tensor(std::initializer_list<int64_t> sizes, abi::DType dtype, abi::Layout layout) {
  return recycled(sizes, dtype, layout, kNeverKept);
}

abi::Tensor recycled_tensor(std::initializer_list<int64_t> sizes, abi::DType dtype, abi::Layout layout) {
  return recycled(sizes, dtype, layout, kLeast);
}

abi::Tensor recycled_floats(int64_t count) {
  return recycled({count}, abi::DType::float32, abi::Layout::contiguous, kLeast, true);
}

void advise_huge_pages([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  if (last > first && last - first >= kLargeMap) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace ghost

// Called by ghost_ops/backends/native.py.
extern "C" __attribute__((visibility("default"))) void ghost_ops_cpu_empty_cache() { ghost::Kept::all().empty(); }
extern "C" __attribute__((visibility("default"))) int64_t ghost_ops_cpu_kept_bytes() {
  return ghost::Kept::all().bytes();
}
extern "C" __attribute__((visibility("default"))) void ghost_ops_cpu_poison_maps(int on) {
  ghost::Kept::all().poison(on);
}
// As above: memory that is about to be filled with packed weights.
extern "C" __attribute__((visibility("default"))) void ghost_ops_cpu_advise_huge_pages(const void* data,
                                                                                       int64_t bytes) {
  ghost::advise_huge_pages(data, bytes);
}
