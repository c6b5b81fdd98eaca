// The kernels of the best instruction set that this machine has, or of the one that was asked for.
#pragma once
#include <string>

#include "kernels/kernels.h"

namespace ghost {

const Kernels& kernels();
bool use_isa(const char* isa);               // for the kernels from now on; false where it does not run here
const Kernels* kernels_of(const char* isa);  // null where this build or machine lacks it
std::string names();                         // of the sets that run here, the fastest first, with commas between

}  // namespace ghost
