// The kernels as operators: tensors to pointers, a plan, launches on the caller's stream. Nothing waits for the device.
//
// They are private: ghost_ops/backends/cuda calls them from the implementations of `program` and `ghost_module`.
#include <map>
#include <memory>
#include <mutex>
#include <vector>

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

using Blocks = std::vector<Block>;

/// The plan for a chain of blocks; the same question is answered from memory.
std::shared_ptr<const Plan> plan_for(const Blocks& blocks, int element, int64_t images, int32_t device,
                                     const Extras& extras, const Wish& wish) {
  constexpr size_t kMost = 2048;  // launches that are kept, of some kilobytes each
  static std::mutex mutex;
  static std::map<Numbers, std::shared_ptr<const Plan>> known;
  static size_t launches = 0;
  Numbers key{element, images, device, extras.scale + 2 * extras.residual + 4 * extras.squeeze};
  const auto add = [&](const auto& numbers) {
    int32_t own[sizeof numbers / sizeof(int32_t)];
    std::memcpy(own, &numbers, sizeof numbers), key.insert(key.end(), std::begin(own), std::end(own));
  };
  add(wish);
  for (const Block& b : blocks) add(b);
  const Limits limits = device_limits(device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const auto plan = std::make_shared<const Plan>(make_plan(blocks, element, images, limits, extras, wish));
  if (plan->empty()) fail("no part of a block fits the shared memory of the device, or a launch");
  if (launches + plan->size() > kMost) known.clear(), launches = 0;
  launches += plan->size();
  return known[key] = plan;
}

Blocks blocks_of(const Numbers& list, const Tensor& x, const Tensor& matrices, const Tensor& vectors) {
  expect(!list.empty() && list.size() % kBlockNumbers == 0, "blocks that ghost_ops wrote");
  std::vector<int32_t> numbers;
  for (const int64_t n : list) {
    expect(INT32_MIN <= n && n <= INT32_MAX, "numbers of 32 bits in a block");
    numbers.push_back(static_cast<int32_t>(n));
  }
  Blocks blocks(list.size() / kBlockNumbers);
  std::memcpy(blocks.data(), numbers.data(), numbers.size() * sizeof(int32_t));
  if (const char* what = validate(blocks, matrices.numel(), vectors.numel(), x.dtype() != DType::float32))
    fail(std::string("block: ") + what);
  const Block& b = blocks[0];
  const bool is_planar = b.window && x.is_contiguous();
  expect(x.dim() == 4 && (is_planar || x.is_contiguous(Layout::channels_last)), "x: a map in channels_last");
  const int64_t sizes[] = {b.window ? b.image_channels : b.channels, b.window ? b.image_height : b.height,
                           b.window ? b.image_width : b.width};
  for (int i = 0; i < 3; i++) expect(x.size(i + 1) == sizes[i], "x: a map of the block's sizes");
  expect(matrices.dtype() == x.dtype() && matrices.is_contiguous(), "matrices: as dense as x, in its dtype");
  expect(vectors.dtype() == DType::float32 && vectors.is_contiguous(), "vectors: dense float32");
  for (const Tensor* t : {&matrices, &vectors}) {
    expect(abi::cuda_device(*t, "parameters") == abi::cuda_device(x, "x"), "parameters on the device of x");
    expect(reinterpret_cast<uintptr_t>(t->data<const char>()) % 16 == 0, "parameters that begin at 16 bytes");
  }
  return blocks;
}

Wish wish_of(const Numbers& list) {
  Wish wish{};
  expect(list.empty() || list.size() == kWishes, "no wish, or one of seven numbers");
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

/// What lies in global memory between the launches of a chain, of each block: what it makes, its expanded map, sums of
/// lanes, and excitations.
struct Between {
  Tensor out, expanded, sums, factors;
};

Tensor chain(const Tensor& x, const Tensor& matrices, const Tensor& vectors, const Numbers& numbers,
             const Numbers& wish) {
  const Kernels& kernels = kernels_for(x.dtype());
  const Blocks blocks = blocks_of(numbers, x, matrices, vectors);
  const int32_t device = abi::cuda_device(x, "x");
  const abi::CudaGuard guard(device);
  const int64_t images = x.size(0);
  const auto empty = [&](std::initializer_list<int64_t> sizes, DType dtype, Layout layout = Layout::contiguous) {
    return abi::empty_on_cuda(sizes, dtype, device, layout);
  };
  const auto whole = [&](int64_t of) { return (images + of - 1) / of * of; };
  const auto made_by = [&](const Block& b) {
    if (b.linear) return empty({whole(kImagesOfLinear), b.kept2}, x.dtype());
    return empty({images, b.kept2, out_height(b), out_width(b)}, x.dtype(), Layout::channels_last);
  };
  if (images == 0) return made_by(blocks.back());
  const auto plan = plan_for(blocks, x.dtype() == DType::float32 ? 4 : 2, images, device, {}, wish_of(wish));
  std::vector<Between> between(blocks.size());
  for (const Part& part : *plan) {
    const auto [first, last, begins_within, ends_within, excites] = part.run;
    const Block &begin = blocks[first], &end = blocks[last];
    Between &from = between[first], &to = between[last];
    Call call = call_for(x, matrices, vectors, device);
    call.is_planar = first == 0 && begin.window && x.is_contiguous();
    const Tensor& source = first ? between[first - 1].out : x;
    const Tensor& sums = begin.linear ? between[first - 1].sums : from.sums;
    const auto pointer = [](const Tensor& t) { return t ? t.data<const char>() : nullptr; };
    call.inputs[0] = pointer(begins_within ? from.expanded : source), call.inputs[1] = pointer(source);
    call.residual = begin.shortcut == 0 ? pointer(source) : nullptr;
    call.scale = pointer(from.factors), call.known = sums ? sums.data<const float>() : nullptr;
    const bool squeezes = last + 1 < static_cast<int>(blocks.size()) && blocks[last + 1].linear == kOfMeans;
    if (excites) {
      from.factors = empty({whole(kImagesOfExcitation), lanes(begin)}, x.dtype());
      call.out = from.factors.data<char>();
    } else if (ends_within) {
      to.expanded = empty({images, out_height(end), out_width(end), lanes(end)}, x.dtype());
      call.out = to.expanded.data<char>();
    } else if (!squeezes) {
      to.out = made_by(end);
      call.out = to.out.data<char>();
    }
    if (!excites && ((end.hidden && (ends_within || part.run.is_whole_block())) || squeezes)) {
      to.sums = empty({images, part.launch.places(), squeezes ? lanes_of(end.primary2) : lanes(end)}, DType::float32);
      call.sums = to.sums.data<float>();
    }
    if (ends_within && first < last && end.shortcut >= 0) {
      between[last - 1].out = made_by(blocks[last - 1]);
      call.between = between[last - 1].out.data<char>();
    }
    launch(kernels, call, part.launch, x.dtype());
  }
  return std::move(between.back().out);
}

std::tuple<Tensor, Tensor> module(const Tensor& x, const Tensor& matrices, const Tensor& vectors,
                                  const std::optional<Tensor>& scale, const std::optional<Tensor>& residual,
                                  const Numbers& numbers, bool squeeze, const Numbers& wish) {
  const Kernels& kernels = kernels_for(x.dtype());
  const Blocks blocks = blocks_of(numbers, x, matrices, vectors);
  const Block& b = blocks[0];
  expect(blocks.size() == 1 && b.primary == 0 && !b.window, "block: a module alone");
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
  const auto plan = plan_for(blocks, x.dtype() == DType::float32 ? 4 : 2, images, device, extras, wish_of(wish));
  const Launch& l = (*plan)[0].launch;
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
                            b.multiplier2, 1.f / (float(b.height) * float(b.width)), call.stream}));
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
  library.define("_cuda_chain(Tensor x, Tensor matrices, Tensor vectors, int[] blocks, int[] wish) -> Tensor");
  library.define(
      "_cuda_module(Tensor x, Tensor matrices, Tensor vectors, Tensor? scale, Tensor? residual, int[] block, "
      "bool squeeze, int[] wish) -> (Tensor, Tensor)");
  return library;
}

abi::Library& implement() {
  static abi::Library library("ghost_ops", GHOST_DISPATCH_KEY);
  library.impl("_cuda_gather", abi::boxed<gather>);
  library.impl("_cuda_chain", abi::boxed<chain>);
  library.impl("_cuda_module", abi::boxed<module>);
  return library;
}

[[maybe_unused]] const abi::Library *schemas = &define(), *kernels = &implement();

}  // namespace
}  // namespace ghost::cuda
