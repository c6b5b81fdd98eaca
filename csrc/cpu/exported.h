// Functions that ghost_ops/backends/native.py calls through ctypes, where a C++ exception would end the process.
#pragma once

#define GHOST_EXPORTED extern "C" __attribute__((visibility("default")))

namespace ghost {

/// The result of body(), or `otherwise` where it throws.
template <class Result, class Body>
Result guarded(Result otherwise, const Body& body) noexcept {
  try {
    return body();
  } catch (...) {
    return otherwise;
  }
}

}  // namespace ghost
