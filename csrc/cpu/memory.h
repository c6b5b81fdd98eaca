// The tensors that operators return.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "abi.h"

namespace ghost {

/// A new CPU tensor, dense in this order, its elements not initialised. A large one is where such a tensor lay that
/// nobody needs any more: fresh memory costs more than computing what goes there (docs/architecture.md, Memory).
abi::Tensor new_tensor(std::initializer_list<int64_t> sizes, abi::DType dtype,
                       abi::Layout layout = abi::Layout::contiguous);

}  // namespace ghost
