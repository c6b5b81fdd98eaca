// Lists as an operator takes them: int[] as std::vector<int64_t>, Tensor[] as std::vector<Tensor>. See abi.h.
#pragma once
#include <vector>

#include "abi.h"

struct StableListOpaque;
using StableListHandle = StableListOpaque*;

extern "C" {
AOTITorchError torch_list_size(StableListHandle list_handle, size_t* size);
AOTITorchError torch_list_get_item(StableListHandle list_handle, size_t index, StableIValue* element);
AOTITorchError torch_delete_list(StableListHandle list_handle);
AOTITorchError torch_new_list_reserve_size(size_t size, StableListHandle* ret);
AOTITorchError torch_list_push_back(StableListHandle list_handle, StableIValue element);
}

namespace ghost::abi {

/// A list is an owned handle; its elements become those of the vector.
template <class T>
struct Unpack<std::vector<T>> {
  static std::vector<T> from(StableIValue value) {
    struct Delete {
      void operator()(StableListHandle list) const { torch_delete_list(list); }
    };
    const std::unique_ptr<StableListOpaque, Delete> list(reinterpret_cast<StableListHandle>(value));
    size_t size = 0;
    check(torch_list_size(list.get(), &size), "get a list's size");
    std::vector<T> out;
    out.reserve(size);
    for (size_t i = 0; i < size; i++) {
      StableIValue element = 0;
      check(torch_list_get_item(list.get(), i, &element), "get a list's element");
      out.push_back(Unpack<T>::from(element));
    }
    return out;
  }
};

/// The other way: the list goes to the dispatcher. Tensors that are moved in give their handles.
template <class T>
StableIValue pack(const std::vector<T>& values) {
  StableListHandle list = nullptr;
  check(torch_new_list_reserve_size(values.size(), &list), "make a list");
  for (const T& value : values) check(torch_list_push_back(list, pack(value)), "add to a list");
  return reinterpret_cast<StableIValue>(list);
}
template <class T>
StableIValue pack(std::vector<T>&& values) {
  StableListHandle list = nullptr;
  check(torch_new_list_reserve_size(values.size(), &list), "make a list");
  for (T& value : values) check(torch_list_push_back(list, pack(std::move(value))), "add to a list");
  return reinterpret_cast<StableIValue>(list);
}

}  // namespace ghost::abi
