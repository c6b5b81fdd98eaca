// The operators of ghost_ops: their schemas, and the CPU kernels behind them.
#include <sstream>

#include "abi.h"
#include "cpu/operators.h"

namespace ghost {
namespace {

const char* const kSchemas =
#include "schemas.inc"
    ;

abi::Library& define() {
  static abi::Library library("ghost_ops");
  std::istringstream lines(kSchemas);
  for (std::string line; std::getline(lines, line);)
    if (line.find("->") != std::string::npos) library.define(line.c_str());
  return library;
}

abi::Library& implement() {
  static abi::Library library("ghost_ops", "CPU");
  library.impl("ghost_module", abi::boxed<ghost_module>);
  library.impl("ghost_module_eval", abi::boxed<ghost_module_eval>);
  library.impl("ghost_module_train", abi::boxed<ghost_module_train>);
  library.impl("ghost_module_train_backward", abi::boxed<ghost_module_train_backward>);
  library.impl("squeeze_excite", abi::boxed<squeeze_excite>);
  library.impl("excite", abi::boxed<excite>);
  library.impl("squeeze_excite_backward", abi::boxed<squeeze_excite_backward>);
  library.impl("cheap_concat", abi::boxed<cheap_concat>);
  library.impl("depthwise", abi::boxed<depthwise>);
  library.impl("depthwise_backward", abi::boxed<depthwise_backward>);
  library.impl("program", abi::boxed<program>);
  library.impl("program_pack", abi::boxed<program_pack>);
  library.impl("program_eval", abi::boxed<program_eval>);
  return library;
}

[[maybe_unused]] const abi::Library *schemas = &define(), *kernels = &implement();

}  // namespace
}  // namespace ghost
