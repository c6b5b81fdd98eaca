// The kernels as operators: tensors to pointers, a plan, launches on the caller's stream. Nothing waits for the device.
//
// They are private: ghost_ops/backends/cuda calls them from the implementations of `program` and `ghost_module`.
#include <array>
#include <map>
#include <mutex>

#include "abi_cuda.h"
#include "abi_lists.h"
#include "check.h"
#include "launch.h"

#ifndef GHOST_DISPATCH_KEY
#define GHOST_DISPATCH_KEY "CUDA"  // the tests' emulator takes tensors of the CPU
#endif

namespace ghost::cuda {
namespace {

using abi::DType;
using abi::fail;
using abi::Layout;
using abi::Tensor;
using Numbers = std::vector<int64_t>;

const Kernels& kernels_for(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return kernels_float32;
    case DType::float16:
      return kernels_float16;
    case DType::bfloat16:
      return kernels_bfloat16;
    default:
      fail("expected a map of float32, float16 or bfloat16");
  }
}

void launched(const char* why) {
  if (why) fail(std::string("a kernel was not launched: ") + why);
}

void expect(bool right, const char* what) {
  if (!right) fail(std::string("expected ") + what);
}

struct Limits : Device {
  int32_t generation;
};

Limits device_limits(int32_t index) {
  static std::mutex mutex;
  static std::map<int32_t, Limits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto [found, is_new] = known.try_emplace(index);
  if (is_new) {
    Limits& l = found->second;
    if (const char* why = device_info(index, l.processors, l.shared, l.generation)) {
      known.erase(found);
      fail(std::string("a device does not say what it has: ") + why);
    }
  }
  return found->second;
}

/// The plan for a block; the same question is answered from memory.
Plan plan_for(const Block& b, int element, int64_t images, int32_t device, const Extras& extras, const Wish& wish) {
  constexpr size_t kMost = 1024;
  using Key = std::array<int64_t, kBlockNumbers + kWishes + 4>;
  static std::mutex mutex;
  static std::map<Key, Plan> known;
  int32_t numbers[kBlockNumbers + kWishes];
  std::memcpy(numbers, &b, sizeof b), std::memcpy(numbers + kBlockNumbers, &wish, sizeof wish);
  Key key{element, images, device, extras.scale + 2 * extras.residual + 4 * extras.squeeze};
  std::copy(std::begin(numbers), std::end(numbers), key.begin() + 4);
  const Limits limits = device_limits(device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const auto plan = make_plan(b, element, images, limits, extras, wish);
  if (!plan) fail("no part of this block fits the shared memory of the device, or a launch");
  if (known.size() >= kMost) known.clear();
  return known[key] = *plan;
}

Block block_of(const Numbers& list, const Tensor& x, const Tensor& matrices, const Tensor& vectors) {
  expect(list.size() == kBlockNumbers, "a block that ghost_ops wrote");
  int32_t numbers[kBlockNumbers];
  for (int i = 0; i < kBlockNumbers; i++) {
    expect(INT32_MIN <= list[i] && list[i] <= INT32_MAX, "numbers of 32 bits in a block");
    numbers[i] = static_cast<int32_t>(list[i]);
  }
  Block b;
  std::memcpy(&b, numbers, sizeof b);
  if (const char* what = validate(b, matrices.numel(), vectors.numel(), x.dtype() != DType::float32))
    fail(std::string("block: ") + what);
  expect(x.dim() == 4 && x.is_contiguous(Layout::channels_last), "x: a map in channels_last");
  expect(x.size(1) == b.channels && x.size(2) == b.height && x.size(3) == b.width, "x: a map of the block's sizes");
  expect(matrices.dtype() == x.dtype() && matrices.is_contiguous(), "matrices: as dense as x, in its dtype");
  expect(vectors.dtype() == DType::float32 && vectors.is_contiguous(), "vectors: dense float32");
  for (const Tensor* t : {&matrices, &vectors}) {
    expect(abi::cuda_device(*t, "parameters") == abi::cuda_device(x, "x"), "parameters on the device of x");
    expect(reinterpret_cast<uintptr_t>(t->data<const char>()) % 16 == 0, "parameters that begin at 16 bytes");
  }
  return b;
}

Wish wish_of(const Numbers& list) {
  Wish wish{};
  expect(list.empty() || list.size() == kWishes, "no wish, or one of six numbers");
  int32_t numbers[kWishes] = {};
  for (size_t i = 0; i < list.size(); i++) {
    expect(0 <= list[i] && list[i] <= INT32_MAX, "a wish: numbers from 0 on");
    numbers[i] = static_cast<int32_t>(list[i]);
  }
  std::memcpy(&wish, numbers, sizeof wish);
  return wish;
}

/// What all launches of a call have.
Call call_for(const Tensor& x, const Tensor& matrices, const Tensor& vectors, int32_t device) {
  const Limits limits = device_limits(device);
  Call call{};
  call.images = x.size(0), call.matrices = matrices.data<const char>(), call.vectors = vectors.data<const float>();
  call.stream = abi::cuda_stream(device), call.most_shared = limits.shared, call.overlaps = limits.generation >= 9;
  return call;
}

void launch(const Kernels& kernels, Call& call, const Launch& l, DType dtype) {
  call.launch = l;
  set_units(call, dtype == DType::float32 ? 4 : 2);
  launched(kernels.strip(call));
}

Tensor bottleneck(const Tensor& x, const Tensor& matrices, const Tensor& vectors, const Numbers& numbers,
                  const Numbers& wish) {
  const Kernels& kernels = kernels_for(x.dtype());
  const Block b = block_of(numbers, x, matrices, vectors);
  expect(b.primary > 0, "block: a bottleneck");
  const int32_t device = abi::cuda_device(x, "x");
  const abi::CudaGuard guard(device);
  const int64_t images = x.size(0), height = out_height(b), width = out_width(b), all = lanes(b);
  const auto empty = [&](std::initializer_list<int64_t> sizes, DType dtype) {
    return abi::empty_on_cuda(sizes, dtype, device);
  };
  Tensor out = abi::empty_on_cuda({images, b.kept2, height, width}, x.dtype(), device, Layout::channels_last);
  if (images == 0) return out;
  const Plan plan = plan_for(b, x.dtype() == DType::float32 ? 4 : 2, images, device, {}, wish_of(wish));
  Call call = call_for(x, matrices, vectors, device);
  Tensor sums, expanded, factors;
  if (plan.sums) {
    sums = empty({images, plan.sums, all}, DType::float32);
    call.sums = sums.data<float>();
  }
  for (int i = 0; i < plan.launches; i++) {
    const Piece piece = plan.piece[i];
    call.inputs[0] = call.inputs[1] = x.data<const char>();
    call.residual = piece != Piece::expand && b.shortcut == 0 ? x.data<const char>() : nullptr;
    if (piece == Piece::expand) {
      expanded = empty({images, height, width, all}, x.dtype());
      call.out = expanded.data<char>();
    } else if (piece == Piece::excite) {
      factors = empty({(images + kImagesOfExcitation - 1) / kImagesOfExcitation * kImagesOfExcitation, all}, x.dtype());
      call.out = factors.data<char>(), call.scale = factors.data<const char>();
    } else {
      call.out = out.data<char>();
      if (piece == Piece::project) call.inputs[0] = expanded.data<const char>();
    }
    launch(kernels, call, plan.launch[i], x.dtype());
  }
  return out;
}

std::tuple<Tensor, Tensor> module(const Tensor& x, const Tensor& matrices, const Tensor& vectors,
                                  const std::optional<Tensor>& scale, const std::optional<Tensor>& residual,
                                  const Numbers& numbers, bool squeeze, const Numbers& wish) {
  const Kernels& kernels = kernels_for(x.dtype());
  const Block b = block_of(numbers, x, matrices, vectors);
  expect(b.primary == 0, "block: a module alone");
  const int32_t device = abi::cuda_device(x, "x");
  const abi::CudaGuard guard(device);
  const int64_t images = x.size(0);
  if (scale)
    expect(scale->dim() == 2 && scale->size(0) == images && scale->size(1) == b.channels && scale->is_contiguous() &&
               scale->dtype() == x.dtype() && abi::cuda_device(*scale, "scale") == device,
           "scale: images x channels, dense, in the dtype of x");
  if (residual)
    expect(residual->dim() == 4 && residual->size(0) == images && residual->size(1) == b.kept2 &&
               residual->size(2) == b.height && residual->size(3) == b.width && residual->dtype() == x.dtype() &&
               residual->is_contiguous(Layout::channels_last) && abi::cuda_device(*residual, "residual") == device,
           "residual: a map like the output, channels_last");
  Tensor out = abi::empty_on_cuda({images, b.kept2, b.height, b.width}, x.dtype(), device, Layout::channels_last);
  Tensor means =
      squeeze ? abi::empty_on_cuda({images, b.kept2}, x.dtype(), device) : abi::empty_on_cuda({0}, x.dtype(), device);
  if (images == 0) return {std::move(out), std::move(means)};
  Extras extras{};
  extras.scale = scale.has_value(), extras.residual = residual.has_value(), extras.squeeze = squeeze;
  const Plan plan = plan_for(b, x.dtype() == DType::float32 ? 4 : 2, images, device, extras, wish_of(wish));
  const Launch& l = plan.launch[0];
  Call call = call_for(x, matrices, vectors, device);
  const int64_t parts = int64_t{l.bands} * l.strips, all = int64_t{lanes_of(b.primary2)} * (1 + b.multiplier2);
  Tensor sums;
  if (squeeze) {
    sums = abi::empty_on_cuda({images, parts, all}, DType::float32, device);
    call.sums = sums.data<float>();
  }
  call.inputs[0] = x.data<const char>(), call.out = out.data<char>();
  call.scale = scale ? scale->data<const char>() : nullptr;
  call.residual = residual ? residual->data<const char>() : nullptr;
  launch(kernels, call, l, x.dtype());
  if (squeeze)
    launched(kernels.means({means.data<char>(), call.sums, images, static_cast<int32_t>(parts), b.kept2, b.primary2,
                            b.multiplier2, l.inverse_pixels, call.stream}));
  return {std::move(out), std::move(means)};
}

std::tuple<Tensor, Tensor> gather(const Tensor& packed, const Tensor& index, int64_t matrices, const Tensor& like) {
  const Kernels& kernels = kernels_for(like.dtype());
  const int32_t device = abi::cuda_device(packed, "packed");
  expect(packed.dtype() == DType::float32 && packed.is_contiguous(), "packed: dense float32");
  expect(index.dtype() == DType::int32 && index.is_contiguous() && abi::cuda_device(index, "index") == device,
         "index: dense int32 on the device of packed");
  const int64_t all = index.numel();
  expect(0 < matrices && matrices < all && all < INT32_MAX, "matrices: some of the index, but not all");
  const abi::CudaGuard guard(device);
  Tensor first = abi::empty_on_cuda({matrices}, like.dtype(), device);
  Tensor second = abi::empty_on_cuda({all - matrices}, DType::float32, device);
  launched(kernels.gather({first.data<char>(), second.data<float>(), packed.data<const float>(),
                           index.data<const int32_t>(), matrices, all, abi::cuda_stream(device)}));
  return {std::move(first), std::move(second)};
}

abi::Library& define() {
  static abi::Library library("ghost_ops");
  library.define("_cuda_gather(Tensor packed, Tensor index, int matrices, Tensor like) -> (Tensor, Tensor)");
  library.define("_cuda_bottleneck(Tensor x, Tensor matrices, Tensor vectors, int[] block, int[] wish) -> Tensor");
  library.define(
      "_cuda_module(Tensor x, Tensor matrices, Tensor vectors, Tensor? scale, Tensor? residual, int[] block, "
      "bool squeeze, int[] wish) -> (Tensor, Tensor)");
  return library;
}

abi::Library& implement() {
  static abi::Library library("ghost_ops", GHOST_DISPATCH_KEY);
  library.impl("_cuda_gather", abi::boxed<gather>);
  library.impl("_cuda_bottleneck", abi::boxed<bottleneck>);
  library.impl("_cuda_module", abi::boxed<module>);
  return library;
}

[[maybe_unused]] const abi::Library *schemas = &define(), *kernels = &implement();

}  // namespace
}  // namespace ghost::cuda
