// A stand-in for torch: the part of its stable C interface that csrc/abi.h declares, so that the operators run in a
// program of their own, every part of which is compiled with a sanitizer. There is no dispatcher and no reference: what a
// kernel hands to the reference is an error here.
#pragma once
#include <string>
#include <vector>

#include "abi_lists.h"
#include "guarded.h"

namespace sanitize {

/// Of what is allocated from now on, by operators too; set between calls.
struct Settings {
  Place place = Place::heap;
  int fill = 0xff;  // each byte of fresh memory: floats are NaN
  uint32_t threads = 1;
  int64_t most_bytes = int64_t{1} << 30;  // of a tensor; more is refused, as torch does where memory ends
};
extern Settings settings;

/// What of csrc/abi.h's dtypes a tensor has, as torch's code. -1: none of them.
int32_t code_of_name(const std::string& name);
int64_t element_size(int32_t dtype);

/// A tensor of these sizes and strides, of which all elements that its strides span are in one block.
AtenTensorHandle make_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t dtype);
/// Turns off the library's own pool of memory for maps, whose neighbours are its other maps: it takes no addresses where
/// these are limited.
void leave_out_pool();
char* data_of(AtenTensorHandle tensor);
/// Bytes from the first element to the end of the last one.
int64_t span_of(AtenTensorHandle tensor);
const std::vector<int64_t>& sizes_of(AtenTensorHandle tensor);
int32_t dtype_of(AtenTensorHandle tensor);

StableIValue make_list(const std::vector<StableIValue>& items);
std::vector<StableIValue> items_of(StableIValue list);

/// "Tensor", "Tensor?", "Tensor[]", "int[]", "int", "float" or "bool" for each argument and result of an operator.
struct Schema {
  std::vector<std::string> arguments, results;
};
const Schema& schema_of(const std::string& op);
std::vector<std::string> operators();

/// Frees a value of this type.
void release(StableIValue value, const std::string& type);

/// Calls an operator. Returns its results, or none and why.
struct Outcome {
  std::vector<StableIValue> results;
  std::string error;
};
Outcome call(const std::string& op, const std::vector<StableIValue>& arguments);

}  // namespace sanitize
