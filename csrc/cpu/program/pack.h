// Parameters of a net into the packed form that a program reads: BatchNorms folded, weights in panels.
#pragma once
#include <vector>

#include "abi.h"
#include "steps.h"

namespace ghost {

/// Packs `parameters` (in the order that ghost_ops/ops/program.py gives them) into p.packed_floats floats.
void pack_program(const Program& p, const std::vector<abi::Tensor>& parameters, float* packed);

}  // namespace ghost
