// Memory that outlives a call: of the maps that operators return, and of packed weights.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "abi.h"

namespace ghost {

/// A new CPU tensor, dense in this order, its elements not initialised. Training's: its maps are needed for long, and
/// what is kept of them would come on top of what PyTorch's own operators take; so it is memory of PyTorch's, unless so
/// large that the C library would have the system make it anew each time.
abi::Tensor new_tensor(std::initializer_list<int64_t> sizes, abi::DType dtype,
                       abi::Layout layout = abi::Layout::contiguous);

/// The same; a large one lies where such a tensor lay that nobody needs any more. Inference's: fresh memory costs more
/// than computing what goes there (docs/architecture.md, Memory).
abi::Tensor recycled_tensor(std::initializer_list<int64_t> sizes, abi::DType dtype, abi::Layout layout);

/// The same for what an operator needs while it runs: whatever block is large enough will do.
abi::Tensor recycled_floats(int64_t count);

/// Asks for huge pages where a large block lies: fresh memory is mapped 4 KB at a time, and weights that are read once
/// a call miss the TLB (docs/performance.md).
void advise_huge_pages(const void* data, int64_t bytes);

}  // namespace ghost
