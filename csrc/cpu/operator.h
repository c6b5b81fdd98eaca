// What a file that implements operators needs: the types of their arguments and results, and their registration.
//
// An operator is a function in namespace ghost that takes the arguments of its line in ghost_ops/ops/schemas.inc, in
// order, and after it, in the same file, the line GHOST_OPERATOR(its name);
#pragma once
#include <array>
#include <atomic>
#include <optional>
#include <tuple>
#include <utility>

#include "abi_lists.h"

namespace ghost {

using abi::Tensor;
using Optional = std::optional<Tensor>;
using Ints = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

/// What an operator with n results returns: a tuple of n tensors.
template <size_t n>
using Results = decltype(std::tuple_cat(std::declval<std::array<Tensor, n>>()));

/// Whether every CPU kernel hands its calls to the reference. Python sets it (csrc/register.cpp).
inline std::atomic<bool> use_reference{false};

/// The CPU's place in the library of operators, whose schemas are defined before the first kernel is registered.
abi::Library& cpu_library();

/// Registers an operator's CPU kernel when the library is loaded.
struct RegisteredOperator {
  RegisteredOperator(const char* name, void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
    cpu_library().impl(name, kernel);
  }
};

/// Registers function `op` as the CPU kernel of operator `op`. While the reference is asked for, `<op>_reference` takes
/// the dispatcher's stack as it is.
#define GHOST_OPERATOR(op)                                                                                            \
  [[maybe_unused]] static const ::ghost::RegisteredOperator registered_##op(                                          \
      #op, [](StableIValue* stack, uint64_t inputs, uint64_t outputs) {                                               \
        if (::ghost::use_reference.load(std::memory_order_relaxed)) {                                                 \
          constexpr const char* reference = "ghost_ops::" #op "_reference";                                           \
          return ::ghost::abi::check(torch_call_dispatcher(reference, "", stack, ::ghost::abi::kVersion), reference); \
        }                                                                                                             \
        ::ghost::abi::boxed<op>(stack, inputs, outputs);                                                              \
      })

}  // namespace ghost
