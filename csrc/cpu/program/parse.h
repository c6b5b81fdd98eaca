// What a step is read with: the list, what earlier steps have left, and room in the packed tensor.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace ghost {

class StepReader {
 public:
  static constexpr int64_t kMostChannels = int64_t{1} << 20;

  StepReader(const std::vector<int64_t>& list, Program& program, bool for_one_call)
      : list_(list), program_(program), for_one_call_(for_one_call) {}

  [[noreturn]] static void refuse(const std::string& why);

  // Numbers, in order. Nothing past the list's end is read, and a number outside of the range that is asked for is
  // refused.
  bool at_end() const { return at_ == list_.size(); }
  int64_t any();
  int64_t within(int64_t low, int64_t high, const char* what);
  bool flag(const char* what) { return within(0, 1, what) != 0; }
  double real();
  int64_t channels(const char* what);
  int64_t stride() { return within(1, 64, "stride"); }
  int64_t padding() { return within(0, 64, "padding"); }
  int64_t odd_kernel();
  Size sizes(int64_t low, int64_t high, const char* what) {
    const int64_t h = within(low, high, what);
    return {h, within(low, high, what)};
  }
  int64_t slot() { return within(0, program_.slots - 1, "slot"); }
  int64_t slot_or_none(const char* what) { return within(-1, program_.slots - 1, what); }
  Layer layer();

  /// The map in a slot.
  const Source& map_in(int64_t slot);
  /// Lets the step read a slot of so many channels (0: any), as one source more. Returns the source.
  const Source& read_map(Step& step, int64_t slot, int64_t channels);
  /// The same, and whole vectors of channels are read.
  const Source& read_vectors(Step& step, int64_t slot, int64_t channels);
  /// Puts a view of some channels of a map into a slot.
  void view(int64_t slot, Source source);

  const Step& step(int64_t index) const { return program_[index]; }
  /// How many steps before this one return a map.
  int64_t outputs() const { return static_cast<int64_t>(program_.outputs.size()); }
  const WeightFormat& format() const { return *program_.format; }

  /// Room for a layer of so many floats of weights and so many channels.
  void place(Layer& layer, int64_t weight_floats, int64_t channels);
  void place_slopes(Layer& layer, int64_t channels);
  /// The same for a product of n x k weights.
  void place_product(Layer& layer, int64_t n, int64_t k);
  /// The same for layers of a few rows, each of which is read once: those of one call are read where they are.
  void place_vector_products(Layer& first, int64_t n1, int64_t k1, Layer& second, int64_t n2, int64_t k2);

  int64_t squeeze = 0, excitation = 0, features = 0;  // channels that they have; 0: there are none
  /// Lets features begin anew, of so many channels.
  void begin_features(int64_t channels);

 private:
  friend struct Program;

  int64_t take(int64_t floats);

  const std::vector<int64_t>& list_;
  Program& program_;
  const bool for_one_call_;
  size_t at_ = 0;
  bool are_returned_ = true;   // the features, as they are now
  std::vector<Source> maps_;   // in each slot; of no step where there is none yet
  std::vector<int64_t> read_;  // slots that the step reads
};

/// Makes a kind of step known by the number that lists have for it. Each file in steps/ has one.
class StepKind {
 public:
  using Parse = std::unique_ptr<Step> (*)(StepReader&);  // null: there is nothing to do for it
  StepKind(int64_t code, Parse parse);
};

template <class Kind>
StepKind step_kind(int64_t code) {
  return {code, [](StepReader& r) -> std::unique_ptr<Step> { return std::make_unique<Kind>(r); }};
}

}  // namespace ghost
