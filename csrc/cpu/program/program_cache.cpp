#include "program_cache.h"

namespace ghost {

ProgramCache& ProgramCache::of(const std::vector<int64_t>& list, bool for_one_call) {
  constexpr size_t kMost = 64;  // a net of fused blocks has some 20
  static thread_local LruCache<ProgramCache> known(kMost);
  return known.find([&](const ProgramCache& k) { return k.for_one_call_ == for_one_call && k.list_ == list; },
                    [&] { return ProgramCache(list, for_one_call); });
}

const Plan& ProgramCache::plan(int64_t h, int64_t w, int64_t shares) {
  return plans_
      .find([&](const Sizes& s) { return s.h == h && s.w == w && s.shares == shares; },
            [&] { return Sizes{h, w, shares, Plan(program_, h, w, shares)}; })
      .plan;
}

}  // namespace ghost
