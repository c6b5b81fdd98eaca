// The kernels of the best instruction set that this machine has and GHOST_OPS_ISA allows.
#pragma once
#include <string>

#include "kernels/kernels.h"

namespace ghost {

const Kernels& kernels();                    // throws where GHOST_OPS_ISA names what is not there
const Kernels* kernels_of(const char* isa);  // null where this build or machine lacks it
std::string names();                         // of the sets that run here, the fastest first, with commas between

}  // namespace ghost
