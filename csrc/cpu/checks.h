// Checks before a kernel runs: what the kernels rely on, so that no call reads or writes out of bounds. The fuller
// checks, with the same wording, are those of ghost_ops/ops/checks.py.
#pragma once
#include <optional>
#include <string>

#include "abi.h"

namespace ghost {

class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  void map(const char* argument, const abi::Tensor& x) const {
    if (x.dim() != 4) fail(argument, "4 dimensions (N x C x H x W)", std::to_string(x.dim()));
  }

  /// Sizes of a tensor; -1 takes any.
  void shape(const char* argument, const abi::Tensor& t, std::initializer_list<int64_t> sizes) const {
    bool fits = t.dim() == static_cast<int64_t>(sizes.size());
    std::string expected;
    int64_t i = 0;
    for (int64_t s : sizes) {
      expected += (i ? "x" : "") + (s < 0 ? std::string("any") : std::to_string(s));
      if (fits && s >= 0 && t.size(i) != s) fits = false;
      i++;
    }
    if (!fits) fail(argument, "shape " + expected, text(t));
  }

  void shape(const char* argument, const std::optional<abi::Tensor>& t, std::initializer_list<int64_t> sizes) const {
    if (t) shape(argument, *t, sizes);
  }

  void that(bool fits, const char* argument, const std::string& expected, int64_t got) const {
    if (!fits) fail(argument, expected, std::to_string(got));
  }
  void that(bool fits, const char* argument, const std::string& expected, const std::string& got) const {
    if (!fits) fail(argument, expected, got);
  }

  /// PReLU's weight: 1 element or one per channel.
  void slopes(const char* argument, bool prelu, const std::optional<abi::Tensor>& weight, int64_t channels) const {
    const int64_t got = weight ? weight->numel() : 0;
    that(!prelu || got == channels || got == 1, argument, "1 element or one per channel with prelu", got);
  }

  static std::string text(abi::DType dtype) {
    switch (dtype) {
      case abi::DType::float32:
        return "float32";
      case abi::DType::bfloat16:
        return "bfloat16";
      case abi::DType::float64:
        return "float64";
      case abi::DType::float16:
        return "float16";
      case abi::DType::int64:
        return "int64";
      case abi::DType::int32:
        return "int32";
      default:
        return "another dtype";
    }
  }

  static std::string text(const abi::Tensor& t) {
    std::string out;
    for (int64_t i = 0; i < t.dim(); i++) out += (i ? "x" : "") + std::to_string(t.size(i));
    return out.empty() ? "a scalar" : out;
  }

 private:
  [[noreturn]] void fail(const char* argument, const std::string& expected, const std::string& got) const {
    throw std::runtime_error(std::string("ghost_ops.") + op_ + ": " + argument + ": expected " + expected + ", got " +
                             got);
  }
  const char* op_;
};

/// Whether all tensors are in memory that the CPU kernels read: float32 or bfloat16, on the CPU.
inline bool readable(const abi::Tensor& t) {
  const abi::DType d = t.dtype();
  return (d == abi::DType::float32 || d == abi::DType::bfloat16) && t.is_cpu();
}
inline bool readable(const std::optional<abi::Tensor>& t) { return !t || readable(*t); }
template <class... T>
bool all_readable(const T&... t) {
  return (readable(t) && ...);
}

/// Whether there is one value a channel, or none: a map without batch statistics.
inline bool lacks_statistics(const abi::Tensor& t) { return t.dim() == 4 && t.numel() <= t.size(1); }

/// The cheap kernels that are compiled.
inline bool cheap_kernel_known(const abi::Tensor& weight) {
  const int64_t k = weight.dim() == 4 ? weight.size(2) : 0;
  return (k == 1 || k == 3 || k == 5 || k == 7) && weight.size(3) == k;
}

}  // namespace ghost
