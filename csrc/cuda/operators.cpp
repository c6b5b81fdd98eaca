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

Device device_limits(int32_t index) {
  static std::mutex mutex;
  static std::map<int32_t, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto [found, is_new] = known.try_emplace(index);
  if (is_new) {
    if (const char* why = device_info(index, found->second.processors, found->second.shared)) {
      known.erase(found);
      fail(std::string("a device does not say what it has: ") + why);
    }
  }
  return found->second;
}

/// The plan for a block; the same question is answered from memory.
Plan plan_for(const Block& b, int element, int64_t images, int32_t device) {
  constexpr size_t kMost = 4096;
  using Key = std::array<int64_t, kBlockNumbers + 3>;
  static std::mutex mutex;
  static std::map<Key, Plan> known;
  int32_t numbers[kBlockNumbers];
  std::memcpy(numbers, &b, sizeof b);
  Key key;
  std::copy(std::begin(numbers), std::end(numbers), key.begin());
  key[kBlockNumbers] = element, key[kBlockNumbers + 1] = images, key[kBlockNumbers + 2] = device;
  const Device limits = device_limits(device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const auto plan = make_plan(b, element, images, limits);
  if (!plan) fail("no tile of this block fits the shared memory of the device, or a launch");
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
  if (const char* what = validate(b, matrices.numel(), vectors.numel())) fail(std::string("block: ") + what);
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

/// What both kinds of calls have.
Call call_for(const Block& b, const Tensor& x, const Tensor& matrices, const Tensor& vectors, int32_t device) {
  Call call{};
  const int element = x.dtype() == DType::float32 ? 4 : 2;
  call.block = b, call.images = x.size(0);
  call.plan = plan_for(b, element, call.images, device);
  call.x = x.data<const char>(), call.matrices = matrices.data<const char>(),
  call.vectors = vectors.data<const float>();
  call.vectors_of_x = b.channels * element % 16 == 0 && reinterpret_cast<uintptr_t>(call.x) % 16 == 0;
  call.stream = abi::cuda_stream(device);
  call.most_shared = device_limits(device).shared;
  return call;
}

Tensor bottleneck(const Tensor& x, const Tensor& matrices, const Tensor& vectors, const Numbers& numbers) {
  const Kernels& kernels = kernels_for(x.dtype());
  const Block b = block_of(numbers, x, matrices, vectors);
  expect(b.primary > 0, "block: a bottleneck");
  const int32_t device = abi::cuda_device(x, "x");
  const abi::CudaGuard guard(device);
  Tensor out =
      abi::empty_on_cuda({x.size(0), b.kept2, out_height(b), out_width(b)}, x.dtype(), device, Layout::channels_last);
  if (x.size(0) == 0) return out;
  Call call = call_for(b, x, matrices, vectors, device);
  Tensor sums;
  if (call.plan.launches == 2) {
    sums = abi::empty_on_cuda({x.size(0), call.plan.tiles(), lanes(b)}, DType::float32, device);
    call.sums = sums.data<float>();
  }
  call.out = out.data<char>();
  launched(kernels.bottleneck(call));
  return out;
}

std::tuple<Tensor, Tensor> module(const Tensor& x, const Tensor& matrices, const Tensor& vectors,
                                  const std::optional<Tensor>& scale, const std::optional<Tensor>& residual,
                                  const Numbers& numbers, bool squeeze) {
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
  Call call = call_for(b, x, matrices, vectors, device);
  Tensor sums;
  if (squeeze) {
    sums = abi::empty_on_cuda({images, call.plan.tiles(), b.kept2}, DType::float32, device);
    call.sums = sums.data<float>(), call.squeeze = means.data<char>();
  }
  call.out = out.data<char>();
  call.scale = scale ? scale->data<const char>() : nullptr;
  call.residual = residual ? residual->data<const char>() : nullptr;
  launched(kernels.module(call));
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
  library.define("_cuda_bottleneck(Tensor x, Tensor matrices, Tensor vectors, int[] block) -> Tensor");
  library.define(
      "_cuda_module(Tensor x, Tensor matrices, Tensor vectors, Tensor? scale, Tensor? residual, int[] block, "
      "bool squeeze) -> (Tensor, Tensor)");
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
