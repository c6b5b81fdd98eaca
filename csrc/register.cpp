// The operators of ghost_ops: their schemas, and the CPU kernels behind them.
#include <atomic>
#include <sstream>

#include "abi.h"
#include "cpu/exported.h"
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

/// Whether every CPU kernel hands its calls to the reference.
std::atomic<bool> use_reference{false};

/// A kernel as the dispatcher calls it: while the reference is asked for, `<op>_reference` takes the stack as it is.
#define GHOST_KERNEL(op)                                                                        \
  library.impl(#op, [](StableIValue* stack, uint64_t inputs, uint64_t outputs) {                \
    if (use_reference.load(std::memory_order_relaxed)) {                                        \
      constexpr const char* reference = "ghost_ops::" #op "_reference";                         \
      return abi::check(torch_call_dispatcher(reference, "", stack, abi::kVersion), reference); \
    }                                                                                           \
    abi::boxed<op>(stack, inputs, outputs);                                                     \
  })

abi::Library& implement() {
  static abi::Library library("ghost_ops", "CPU");
  GHOST_KERNEL(ghost_module);
  GHOST_KERNEL(ghost_module_eval);
  GHOST_KERNEL(ghost_module_train);
  GHOST_KERNEL(ghost_module_train_backward);
  GHOST_KERNEL(squeeze_excite);
  GHOST_KERNEL(excite);
  GHOST_KERNEL(squeeze_excite_backward);
  GHOST_KERNEL(cheap_concat);
  GHOST_KERNEL(depthwise);
  GHOST_KERNEL(depthwise_backward);
  GHOST_KERNEL(program);
  GHOST_KERNEL(program_pack);
  GHOST_KERNEL(program_eval);
  return library;
}

[[maybe_unused]] const abi::Library *schemas = &define(), *kernels = &implement();

}  // namespace
}  // namespace ghost

GHOST_EXPORTED void ghost_ops_cpu_use_reference(int on) {
  ghost::use_reference.store(on != 0, std::memory_order_relaxed);
}
