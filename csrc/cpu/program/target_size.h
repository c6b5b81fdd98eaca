// The size that a map is brought to: that of another map, a fixed one, or its own times two factors.
#pragma once
#include "parse.h"
#include "plan.h"

namespace ghost {

class TargetSize {
 public:
  TargetSize() = default;
  /// Reads the numbers of a step, and lets it know the map whose size it takes.
  TargetSize(StepReader& r, Step& step) {
    if (const int64_t other = r.slot_or_none("like"); other >= 0) step.like.push_back(r.map_in(other).step);
    is_of_map_ = !step.like.empty();
    size_ = r.sizes(0, int64_t{1} << 24, "size");
    row_factor_ = r.real(), column_factor_ = r.real();
    if (!is_of_map_ && (size_.h == 0) != (size_.w == 0)) r.refuse("an upsampling to no size");
    if (scales() && !(row_factor_ > 0 && column_factor_ > 0 && row_factor_ < 1e6 && column_factor_ < 1e6))
      r.refuse("an upsampling to no size");
  }

  bool set(StepPlan& s) const {
    if (is_of_map_)
      s.h = s.like[0].h, s.w = s.like[0].w;
    else if (!scales())
      s.h = size_.h, s.w = size_.w;
    else
      s.h = static_cast<int64_t>(static_cast<double>(s.in_h) * row_factor_),
      s.w = static_cast<int64_t>(static_cast<double>(s.in_w) * column_factor_);
    return s.h > 0 && s.w > 0;
  }

  /// The factors; 0 where the sizes decide.
  double row_factor() const { return scales() ? row_factor_ : 0; }
  double column_factor() const { return scales() ? column_factor_ : 0; }

 private:
  Size size_{};
  double row_factor_ = 0, column_factor_ = 0;
  bool is_of_map_ = false;

  bool scales() const { return !is_of_map_ && size_.h == 0; }
};

}  // namespace ghost
