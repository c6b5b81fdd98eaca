// A program: the steps of a net or a block, decoded from the list of integers that the operators take.
//
// The list is written by ghost_ops/program/, which says what each number means. All of a program's parameters
// are in one packed tensor, in the order of the steps.
#pragma once
#include <memory>
#include <vector>

#include "cpu/weights.h"
#include "step.h"

namespace ghost {

/// Of a map, of the memory of one kind that a step works in, and of packed weights: more than any machine has, and so
/// little that no product of a plan overflows.
constexpr int64_t kMostFloats = int64_t{1} << 40;

struct Program {
  std::vector<std::unique_ptr<Step>> steps;  // they do not change once the program is there
  const WeightFormat* format = nullptr;
  int64_t slots = 0;
  int64_t packed_floats = 0;
  int64_t raw_layers = 0;  // whose weights are not packed
  int64_t in_channels = 0;
  int64_t out_channels = 0;       // of the features
  bool ends_in_features = false;  // which are the only result, and no step says so
  std::vector<int64_t> outputs;   // the steps that return maps
  int64_t results = 0;            // maps and features that are returned
  int64_t begun_features = 0;     // how many steps make features of a map
  bool copies_entry = false;      // the input is never read where it is

  int64_t size() const { return static_cast<int64_t>(steps.size()); }
  const Step& operator[](int64_t step) const { return *steps[step]; }

  /// Raises where ghost_ops did not write the list. `for_one_call`: parameters are packed for this one call.
  static Program parse(const std::vector<int64_t>& list, bool for_one_call = false);

 private:
  void place_in_containers();
};

}  // namespace ghost
