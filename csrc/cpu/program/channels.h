// Where the channels of a map are among the lanes of its pixels.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace ghost {

/// Channels that follow each other: `count` of them, the first in lane `at`.
struct Piece {
  int64_t at, count;
};

/// The channels of a map, in pieces, in order. A step that makes a map begins each piece in a lane that is a multiple
/// of 8; a slice of a map need not begin its pieces so.
class Channels {
 public:
  Channels() = default;
  /// Pieces of so many channels; those of none are left out.
  Channels(std::initializer_list<int64_t> counts) {
    int64_t at = 0;
    for (const int64_t count : counts) {
      if (count) pieces_.push_back({at, count});
      at += by_eight(count);
    }
  }

  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t count() const {
    int64_t all = 0;
    for (const Piece& p : pieces_) all += p.count;
    return all;
  }
  /// Lanes of a pixel.
  int64_t width() const { return pieces_.empty() ? 0 : by_eight(pieces_.back().at + pieces_.back().count); }
  /// Whether there is a channel in each lane.
  bool fill_lanes() const { return count() == width(); }

  /// Those of another map side by side with these. Returns the lane that they begin in.
  int64_t append(const Channels& other) {
    const int64_t begin = width();
    for (const Piece& p : other.pieces_) pieces_.push_back({begin + p.at, p.count});
    return begin;
  }

  /// Calls f(lane, channel, count) for the pieces of channels [begin, end); `channel` counts from `begin`.
  template <class F>
  void each(int64_t begin, int64_t end, const F& f) const {
    int64_t first = 0;  // channel of a piece
    for (const Piece& p : pieces_) {
      const int64_t low = std::max(begin, first), high = std::min(end, first + p.count);
      if (low < high) f(p.at + low - first, low - begin, high - low);
      first += p.count;
    }
  }
  template <class F>
  void each(const F& f) const {
    each(0, count(), f);
  }

  /// Calls f(lane, lane of the other, count) for channels that follow each other in both.
  template <class F>
  void each_pair(const Channels& other, const F& f) const {
    each([&](int64_t lane, int64_t channel, int64_t count) {
      other.each(channel, channel + count, [&](int64_t at, int64_t i, int64_t some) { f(lane + i, at, some); });
    });
  }

  /// Channels [begin, end) in lanes that are counted from the first one's, which `lane` becomes.
  Channels sliced(int64_t begin, int64_t end, int64_t& lane) const {
    Channels some;
    each(begin, end, [&](int64_t at, int64_t, int64_t count) {
      if (some.pieces_.empty()) lane = at;
      some.pieces_.push_back({at - lane, count});
    });
    return some;
  }

  /// The same channels without any lanes between them.
  Channels dense() const {
    Channels one;
    one.pieces_.push_back({0, count()});
    return one;
  }

 private:
  std::vector<Piece> pieces_;
};

}  // namespace ghost
