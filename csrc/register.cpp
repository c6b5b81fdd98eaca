// The schemas of the operators, and the switch to the reference. Kernels register themselves: csrc/cpu/operator.h.
#include <sstream>

#include "cpu/exported.h"
#include "cpu/operator.h"

namespace ghost {
namespace {

const char* const kSchemas =
#include "schemas.inc"
    ;

struct Schemas : abi::Library {
  Schemas() : Library("ghost_ops") {
    std::istringstream lines(kSchemas);
    for (std::string line; std::getline(lines, line);)
      if (line.find("->") != std::string::npos) define(line.c_str());
  }
};

}  // namespace

abi::Library& cpu_library() {
  static Schemas schemas;
  static abi::Library kernels("ghost_ops", "CPU");
  return kernels;
}

}  // namespace ghost

GHOST_EXPORTED void ghost_ops_cpu_use_reference(int on) {
  ghost::use_reference.store(on != 0, std::memory_order_relaxed);
}
