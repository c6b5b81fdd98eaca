// Programs and plans of the calls that a thread made last: at batch 1 parsing a block's steps costs as much as a part
// of its arithmetic.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "plan.h"

namespace ghost {

/// The most recent things of a kind, the last used first. What it hands out lives until `most` others were used since.
template <class T>
class LruCache {
 public:
  explicit LruCache(size_t most) : most_(most) {}

  /// The one that fits, else the one that is made now.
  template <class Fits, class Make>
  T& find(const Fits& fits, const Make& make) {
    auto at = std::find_if(items_.begin(), items_.end(), [&](const auto& item) { return fits(*item); });
    if (at == items_.end()) {
      auto made = std::make_unique<T>(make());
      if (items_.size() == most_) items_.pop_back();
      at = items_.insert(items_.end(), std::move(made));
    }
    std::rotate(items_.begin(), at, at + 1);
    return *items_.front();
  }

 private:
  const size_t most_;
  std::vector<std::unique_ptr<T>> items_;
};

class ProgramCache {
 public:
  /// This thread's. Raises as Program::parse does. To be used within one call of an operator.
  static ProgramCache& of(const std::vector<int64_t>& list, bool for_one_call);

  const Program& program() const { return program_; }
  /// Raises as Plan does.
  const Plan& plan(int64_t h, int64_t w, int64_t shares);

 private:
  struct Sizes {
    int64_t h, w, shares;
    Plan plan;
  };
  ProgramCache(const std::vector<int64_t>& list, bool for_one_call)
      : list_(list), for_one_call_(for_one_call), program_(Program::parse(list, for_one_call)) {}

  std::vector<int64_t> list_;
  bool for_one_call_;
  Program program_;
  LruCache<Sizes> plans_{8};
};

}  // namespace ghost
