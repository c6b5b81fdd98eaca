// An operator's launches as they were recorded once (ghost_ops/backends/triton/launch_recording.py), ready to be
// started again for other tensors of the same shapes, strides and dtypes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "abi_lists.h"
#include "driver.h"

namespace ghost::launch {

using abi::Tensor;
using Tensors = std::vector<Tensor>;
using Words = std::vector<int64_t>;

/// What a tensor is, apart from its elements and their place.
struct Form {
  std::vector<int64_t> sizes, strides;
  int32_t dtype, device_type, device_index;

  bool operator==(const Form& other) const;
};

class Reader;

/// Never changes once it is made, so several threads may replay one at the same time.
class Sequence {
 public:
  /// `allocations` and `results` are those of the recorded run; a replay makes tensors like them. The rest is in
  /// `words`, in the order in which launch_native.py writes it:
  ///
  ///   device, bytes of scratch memory,
  ///   for each result the number of the allocation that it lies in,
  ///   number of launches, and for each of them
  ///     function, grid (three numbers), threads, bytes of shared memory, whether it may overlap the one before,
  ///     length of its name, the name's bytes,
  ///     number of parameters, and for each of them its bytes, its base and its value.
  ///
  /// The base of a parameter is -1 for a number, whose bits are the value. For an address it counts arguments, then
  /// allocations, then the scratch memory; the value is the distance from there in bytes.
  ///
  /// Throws where the driver says that a kernel has other parameters.
  Sequence(const Tensors& arguments, const Tensors& allocations, const Tensors& results, const Words& words);

  /// Allocates, and starts all kernels on the caller's current stream. `addresses` are those of the arguments, and are
  /// added to. Throws where the driver refuses a launch.
  Tensors replay(std::vector<uint64_t>& addresses) const;

 private:
  struct Launch {
    Function function;
    std::string name;
    unsigned grid[3], threads, shared_bytes;
    bool overlaps;           // may begin before the kernel before it has ended, and waits by itself
    size_t first_parameter;  // its place among those of all launches
  };
  struct Patch {  // an address among the parameters
    size_t parameter, base;
    int64_t distance;
  };
  struct Output {
    size_t allocation;
    bool is_whole;  // the allocation itself, not a part of it
    Form form;
    int64_t offset;  // elements
  };

  void read_launch(Reader& reader, size_t bases);
  void start(const Launch& launch, void** parameters, Stream stream) const;

  int32_t device_;
  std::vector<Form> allocations_;
  Form scratch_;  // bytes, of which there may be none
  std::vector<Output> outputs_;
  std::vector<Launch> launches_;
  std::vector<uint64_t> parameters_;  // 8 bytes each, in the driver's order; addresses are 0
  std::vector<Patch> patches_;
};

}  // namespace ghost::launch
