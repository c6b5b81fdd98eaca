#include "pool.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "exported.h"

namespace ghost {
namespace {

constexpr int64_t kHuge = 2 << 20, kPage = 64 << 10;  // multiples of every system's pages
constexpr int64_t kSlack = 8;                         // of the peak 1 / kSlack more, since not everything fits in gaps
constexpr int64_t kAddresses = 8;                     // times the machine's memory are reserved, which costs nothing

constexpr int64_t up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Pool& Pool::of_process() {
  static Pool* pool = [] {  // for ever: a tensor may be freed after every static is gone
    Pool* made = new Pool;
    pthread_atfork([] { of_process().mutex_.lock(); }, [] { of_process().mutex_.unlock(); },
                   [] { of_process().mutex_.unlock(); });
    return made;
  }();
  return *pool;
}

Pool::Pool() {
  rlimit addresses{};
  if (getrlimit(RLIMIT_AS, &addresses) || addresses.rlim_cur != RLIM_INFINITY) return;  // they are for others, too
  const int64_t bytes = up(kAddresses * sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), kHuge);
  void* found = mmap(nullptr, bytes + kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return;
  base_ = reinterpret_cast<char*>(up(reinterpret_cast<int64_t>(found), kHuge));
  reserved_ = bytes;
  advise_huge_pages(base_, bytes);
}

char* Pool::take(int64_t bytes) {
  bytes = up(bytes, kPage);
  char* data;
  {
    const std::lock_guard lock(mutex_);
    const int64_t begin = find(bytes);
    if (!open(begin + bytes)) return nullptr;
    claim(begin, begin + bytes);
    used_ += bytes;
    peak_ = std::max(peak_, used_);
    cut(peak_ + peak_ / kSlack - used_);
    data = base_ + begin;
  }
  if (poison_) std::memset(data, 0xff, bytes);
  return data;
}

void Pool::give(char* data, int64_t bytes) {
  bytes = up(bytes, kPage);
  const std::lock_guard lock(mutex_);
  used_ -= bytes;
  add(data - base_, {bytes, true});
  cut(most_);
}

void Pool::empty() {
  const std::lock_guard lock(mutex_);
  cut(0);
  peak_ = used_;
}

int64_t Pool::kept_bytes() {
  const std::lock_guard lock(mutex_);
  return kept_;
}

/// Where `bytes` may begin: in the smallest kept span that holds them, else among spans that touch, where the most is
/// kept, else at the end.
int64_t Pool::find(int64_t bytes) const {
  int64_t best = -1, smallest = INT64_MAX;
  for (const auto& [begin, span] : free_)
    if (span.kept && span.bytes >= bytes && span.bytes < smallest) best = begin, smallest = span.bytes;
  if (best >= 0) return best;
  best = end_;
  int64_t first = 0, end = -1, kept = 0, most = -1;
  for (const auto& [begin, span] : free_) {
    if (begin != end) first = begin, kept = 0;
    end = begin + span.bytes;
    kept += span.kept ? span.bytes : 0;
    if (kept > most && (end - first >= bytes || end == end_)) best = first, most = kept;
  }
  return best;
}

/// Makes the region usable up to `end`, in whole huge pages.
bool Pool::open(int64_t end) {
  if (end <= end_) return true;
  end = up(end, kHuge);
  if (end > reserved_ || mprotect(base_ + end_, end - end_, PROT_READ | PROT_WRITE)) return false;
  add(end_, {end - end_, false});
  end_ = end;
  return true;
}

/// Takes [begin, end), all of which is free, out of the spans.
void Pool::claim(int64_t begin, int64_t end) {
  auto at = std::prev(free_.upper_bound(begin));
  for (int64_t from = at->first; from < end;) {
    const auto [bytes, kept] = at->second;
    const int64_t to = from + bytes;
    at = free_.erase(at);
    if (from < begin) at = std::next(free_.emplace(from, Free{begin - from, kept}).first);
    if (to > end) at = free_.emplace(end, Free{to - end, kept}).first;
    if (kept) kept_ -= std::min(to, end) - std::max(from, begin);
    from = to;
  }
}

/// A free span, joined with its neighbours of the same kind.
void Pool::add(int64_t begin, Free span) {
  if (span.kept) kept_ += span.bytes;
  auto after = free_.lower_bound(begin);
  if (after != free_.end() && begin + span.bytes == after->first && span.kept == after->second.kept) {
    span.bytes += after->second.bytes;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second.bytes == begin && before->second.kept == span.kept) {
      before->second.bytes += span.bytes;
      return;
    }
  }
  free_.emplace_hint(after, begin, span);
}

/// Returns to the system what is kept in excess of `most`, from the ends of the largest spans; of a huge page all.
void Pool::cut(int64_t most) {
  while (kept_ > std::max<int64_t>(most, 0)) {
    const auto size = [](const auto& s) { return s.second.kept ? s.second.bytes : 0; };
    const auto largest =
        std::max_element(free_.begin(), free_.end(), [&](const auto& a, const auto& b) { return size(a) < size(b); });
    const int64_t begin = largest->first, end = begin + largest->second.bytes;
    const int64_t from = std::max(begin, (end - std::min(end - begin, kept_ - most)) / kHuge * kHuge);
    madvise(base_ + from, end - from, MADV_DONTNEED);
    claim(from, end);
    add(from, {end - from, false});
  }
}

void advise_huge_pages([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kLeast = 4 * kHuge;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  if (last > first && last - first >= kLeast) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace ghost

/// 0, or -1 where it failed.
GHOST_EXPORTED int ghost_ops_cpu_empty_cache() {
  return ghost::guarded(-1, [] { return ghost::Pool::of_process().empty(), 0; });
}
/// -1 where it failed.
GHOST_EXPORTED int64_t ghost_ops_cpu_kept_bytes() {
  return ghost::guarded(int64_t{-1}, [] { return ghost::Pool::of_process().kept_bytes(); });
}
GHOST_EXPORTED void ghost_ops_cpu_keep_most(int64_t bytes) { ghost::Pool::keep_most(bytes); }
/// 0, or -1 where it failed.
GHOST_EXPORTED int ghost_ops_cpu_poison_maps(int on) {
  return ghost::guarded(-1, [on] { return ghost::Pool::of_process().poison(on), 0; });
}
/// For memory that is about to be filled with packed weights.
GHOST_EXPORTED void ghost_ops_cpu_advise_huge_pages(const void* data, int64_t bytes) {
  ghost::advise_huge_pages(data, bytes);
}
