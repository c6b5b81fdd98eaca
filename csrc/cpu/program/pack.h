// Parameters of a net into the packed form that a program reads: BatchNorms folded, weights in panels.
#pragma once
#include <vector>

#include "abi.h"
#include "cpu/scratch.h"
#include "steps.h"

namespace ghost {

/// Packs `parameters`, in the order of the steps, into p.packed_floats floats. Returns what is not packed, by step; it
/// lies in the parameters or in scratch.
std::vector<RawLayers> pack_program(const Program& p, const std::vector<abi::Tensor>& parameters, float* packed,
                                    Scratch& scratch);

}  // namespace ghost
