// PyTorch's stable C interface (torch 2.10 and newer), as far as ghost_ops uses it, and small C++ types over it.
//
// Nothing here needs torch to compile, and the library that comes out runs on every torch since 2.10. A test compiles
// this header in one translation unit with torch's own, so a prototype that drifts is an error there.
//
//   Tensor ghost_module(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t channels);
//
//   Library define("ghost_ops");
//   define.define("ghost_module(Tensor x, Tensor weight, Tensor? bias, int channels) -> Tensor");
//   Library cpu("ghost_ops", "CPU");
//   cpu.impl("ghost_module", boxed<ghost_module>);
//
// Who owns what. A kernel owns the inputs on its stack and must consume each one, whatever happens; the dispatcher
// owns the outputs. A Tensor here owns one handle, which is a reference to a tensor that others may share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the values on the stack are read as little-endian");

// ---- torch's functions. All return 0 on success, and catch their own exceptions.

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
class TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
using AOTITorchError = int32_t;
using StableIValue = uint64_t;

extern "C" {
// Tensors. Sizes, strides and data are borrowed: they live as long as the handle.
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle tensor, AtenTensorHandle* another);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim);
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* numel);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** strides);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* device_type);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* device_index);
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, int64_t* offset);
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data);
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data);
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t device_type, int32_t device_index, AtenTensorHandle* tensor);
// Another tensor over the same storage.
AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle tensor, int64_t dim, const int64_t* sizes,
                                              const int64_t* strides, int64_t offset, AtenTensorHandle* another);

int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_layout_strided();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_dtype_int32();
int32_t aoti_torch_dtype_uint8();

// Operators. `fn` finds its inputs on the stack, consumes them, and leaves its outputs there.
AOTITorchError aoti_torch_library_init_fragment(const char* ns, const char* file, uint32_t line,
                                                TorchLibraryHandle* library);
AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* dispatch_key, const char* file, uint32_t line,
                                            TorchLibraryHandle* library);
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle library);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle library, const char* schema);
AOTITorchError torch_library_impl(TorchLibraryHandle library, const char* name,
                                  void (*fn)(StableIValue* stack, uint64_t inputs, uint64_t outputs), uint64_t version);
AOTITorchError torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack, uint64_t version);

// Weak, since not every torch that we run on has them. Of 2.13 and newer: why the last call of this thread failed.
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
// Of 2.11 and newer: a tensor over memory of ours, which is told when nobody needs it any more.
__attribute__((weak)) AOTITorchError torch_from_blob(void* data, int64_t dim, const int64_t* sizes,
                                                     const int64_t* strides, int64_t offset, int32_t dtype,
                                                     int32_t device_type, int32_t device_index,
                                                     AtenTensorHandle* tensor, int32_t layout,
                                                     const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
                                                     void (*deleter)(void* data, void* context), void* context);
}

namespace ghost::abi {

/// The version of the interface that this header is written against: torch 2.10.
constexpr uint64_t kVersion = (uint64_t{2} << 56) | (uint64_t{10} << 48);

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error("ghost_ops: " + message); }

/// Throws where a call into torch returned an error; `what` names the call.
inline void check(AOTITorchError error, const char* what) {
  if (error == 0) return;
  const char* why = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
  fail(std::string(what) + " failed" + (why && *why ? std::string(": ") + why : std::string()));
}

// ---- Tensors

enum class DType { float32, bfloat16, float64, float16, int64, int32, other };

/// Their codes in torch, which only torch knows: functions, not numbers.
struct KnownDType {
  DType dtype;
  int32_t (*code)();
};
inline constexpr KnownDType kDTypes[] = {
    {DType::float32, aoti_torch_dtype_float32}, {DType::bfloat16, aoti_torch_dtype_bfloat16},
    {DType::float64, aoti_torch_dtype_float64}, {DType::float16, aoti_torch_dtype_float16},
    {DType::int64, aoti_torch_dtype_int64},     {DType::int32, aoti_torch_dtype_int32}};

/// The order of the dimensions in memory: NCHW (any number of dimensions), or NHWC (four).
enum class Layout { contiguous, channels_last };

constexpr int64_t kMaxDim = 8;

/// Owns one handle to a tensor. Moves, never copies; share() makes a second handle to the same tensor.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  AtenTensorHandle get() const { return handle_; }
  /// Gives the handle, and the duty to delete it, to the caller.
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  Tensor share() const {
    AtenTensorHandle another = nullptr;
    check(aoti_torch_new_tensor_handle(handle_, &another), "share a tensor");
    return Tensor(another);
  }

  /// First element: data<const float>() to read, data<float>() to write. Does not check the dtype.
  template <class T>
  T* data() const {
    if constexpr (std::is_const_v<T>) {
      const void* p = nullptr;
      check(torch_get_const_data_ptr(handle_, &p), "read a tensor's data");
      return static_cast<T*>(p);
    } else {
      void* p = nullptr;
      check(torch_get_mutable_data_ptr(handle_, &p), "take a tensor's data");
      return static_cast<T*>(p);
    }
  }

  int64_t dim() const {
    int64_t dim = 0;
    check(aoti_torch_get_dim(handle_, &dim), "get a tensor's dim");
    return dim;
  }
  int64_t numel() const {
    int64_t numel = 0;
    check(aoti_torch_get_numel(handle_, &numel), "get a tensor's numel");
    return numel;
  }
  /// dim() sizes, borrowed from the tensor; so are the strides.
  const int64_t* sizes() const {
    int64_t* sizes = nullptr;
    check(aoti_torch_get_sizes(handle_, &sizes), "get a tensor's sizes");
    return sizes;
  }
  const int64_t* strides() const {
    int64_t* strides = nullptr;
    check(aoti_torch_get_strides(handle_, &strides), "get a tensor's strides");
    return strides;
  }
  int64_t size(int64_t i) const { return sizes()[i]; }
  int64_t stride(int64_t i) const { return strides()[i]; }
  DType dtype() const {
    int32_t code = 0;
    check(aoti_torch_get_dtype(handle_, &code), "get a tensor's dtype");
    for (const auto& known : kDTypes) {
      if (known.code() == code) return known.dtype;
    }
    return DType::other;
  }
  bool is_cpu() const {
    int32_t device = -1;
    check(aoti_torch_get_device_type(handle_, &device), "get a tensor's device");
    return device == aoti_torch_device_type_cpu();
  }

  /// Whether the elements are densely in this order; as in torch, strides where the size is 1 do not matter.
  bool is_contiguous(Layout layout = Layout::contiguous) const;

 private:
  AtenTensorHandle handle_ = nullptr;
};

/// The dimension that comes `i`-th from the innermost one in memory.
inline int64_t dim_from_innermost(int64_t i, int64_t dim, Layout layout) {
  constexpr int64_t kChannelsLast[] = {1, 3, 2, 0};
  return layout == Layout::channels_last ? kChannelsLast[i] : dim - 1 - i;
}

inline bool Tensor::is_contiguous(Layout layout) const {
  const int64_t rank = dim();
  if (layout == Layout::channels_last && rank != 4) return false;
  if (numel() == 0) return true;
  const int64_t *size = sizes(), *stride = strides();
  int64_t expected = 1;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t d = dim_from_innermost(i, rank, layout);
    if (size[d] == 1) continue;
    if (stride[d] != expected) return false;
    expected *= size[d];
  }
  return true;
}

/// Bytes of an element.
constexpr int64_t size_of(DType dtype) {
  return dtype == DType::bfloat16 || dtype == DType::float16 ? 2
         : dtype == DType::float32 || dtype == DType::int32  ? 4
                                                             : 8;
}

inline int32_t code_of(DType dtype) {
  const auto known = std::find_if(std::begin(kDTypes), std::end(kDTypes), [=](auto& k) { return k.dtype == dtype; });
  if (known == std::end(kDTypes)) fail("a tensor of a dtype that the kernels do not know");
  return known->code();
}

/// Strides of elements that are densely in the given order. Returns how many elements there are, an empty dimension
/// counted as one.
inline int64_t dense_strides(const int64_t* sizes, int64_t dim, Layout layout, int64_t (&strides)[kMaxDim]) {
  if (dim > kMaxDim) fail("a tensor of more than 8 dimensions");
  if (layout == Layout::channels_last && dim != 4) fail("channels_last takes 4 dimensions");
  int64_t next = 1;
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t d = dim_from_innermost(i, dim, layout);
    strides[d] = next;
    next *= std::max<int64_t>(sizes[d], 1);
  }
  return next;
}

/// A new CPU tensor, its elements not initialised.
inline Tensor empty(const int64_t* sizes, int64_t dim, DType dtype, Layout layout = Layout::contiguous) {
  int64_t strides[kMaxDim];
  dense_strides(sizes, dim, layout, strides);
  AtenTensorHandle handle = nullptr;
  check(aoti_torch_empty_strided(dim, sizes, strides, code_of(dtype), aoti_torch_device_type_cpu(), 0, &handle),
        "allocate a tensor");
  return Tensor(handle);
}

inline Tensor empty(std::initializer_list<int64_t> sizes, DType dtype, Layout layout = Layout::contiguous) {
  return empty(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype, layout);
}

/// A CPU tensor over memory of ours; `deleter(data, context)` is called once nobody needs it. Where torch is 2.11 or
/// newer only: `torch_from_blob` says.
inline Tensor over(void* data, const int64_t* sizes, const int64_t* strides, int64_t dim, DType dtype,
                   void (*deleter)(void* data, void* context), void* context) {
  AtenTensorHandle handle = nullptr;
  check(torch_from_blob(data, dim, sizes, strides, 0, code_of(dtype), aoti_torch_device_type_cpu(), -1, &handle,
                        aoti_torch_layout_strided(), nullptr, 0, deleter, context),
        "make a tensor over memory of ours");
  return Tensor(handle);
}

// ---- Values on the dispatcher's stack: 64 bits each. A Tensor is an owned handle. None is 0, any other optional a
// pointer to a value on the heap, which whoever consumes the value deletes. int, float and bool are in the low bytes.

/// Consumes one value: T is Tensor, int64_t, double, bool, or std::optional of one of these.
template <class T>
struct Unpack {
  static_assert(std::is_same_v<T, int64_t> || std::is_same_v<T, double> || std::is_same_v<T, bool>,
                "an operator takes Tensor, int64_t, double, bool, and std::optional of these");
  static T from(StableIValue value) {
    T out;
    std::memcpy(&out, &value, sizeof(T));
    return out;
  }
};
template <>
struct Unpack<Tensor> {
  static Tensor from(StableIValue value) { return Tensor(reinterpret_cast<AtenTensorHandle>(value)); }
};
template <class T>
struct Unpack<std::optional<T>> {
  static std::optional<T> from(StableIValue value) {
    if (value == 0) return std::nullopt;
    const std::unique_ptr<StableIValue> inner(reinterpret_cast<StableIValue*>(value));
    return Unpack<T>::from(*inner);
  }
};

/// Makes one value. A tensor that is moved in gives its handle, any other is shared.
inline StableIValue pack(Tensor&& tensor) {
  if (!tensor) fail("an operator was given, or returned, a tensor without a handle");
  return reinterpret_cast<StableIValue>(tensor.release());
}
inline StableIValue pack(const Tensor& tensor) { return pack(tensor ? tensor.share() : Tensor()); }
inline StableIValue pack(std::nullopt_t) { return 0; }
template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>
StableIValue pack(T number) {
  using Wide = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;  // a bool is 0 or 1 either way
  const Wide wide = static_cast<Wide>(number);
  StableIValue value = 0;
  std::memcpy(&value, &wide, sizeof(wide));
  return value;
}
template <class T>
StableIValue pack(std::optional<T>&& optional) {
  return optional ? reinterpret_cast<StableIValue>(new StableIValue(pack(std::move(*optional)))) : 0;
}
template <class T>
StableIValue pack(const std::optional<T>& optional) {
  return optional ? reinterpret_cast<StableIValue>(new StableIValue(pack(*optional))) : 0;
}

template <class T>
StableIValue pack(const std::vector<T>& values);  // in abi_lists.h, both
template <class T>
StableIValue pack(std::vector<T>&& values);

/// What a kernel is called with: take<T>() every input in order, before anything that may throw (what is not taken is
/// never freed), then put() every output in order.
class Stack {
 public:
  Stack(StableIValue* values, uint64_t inputs, uint64_t outputs)
      : values_(values), inputs_(inputs), outputs_(outputs) {}

  template <class T>
  T take() {
    if (taken_ == inputs_) fail("a kernel takes more inputs than its schema has");
    return Unpack<T>::from(values_[taken_++]);
  }
  template <class T>
  void put(T&& value) {
    if (taken_ != inputs_) fail("a kernel must take all inputs of its schema before it puts an output");
    if (put_ == outputs_) fail("a kernel puts more outputs than its schema has");
    values_[put_++] = pack(std::forward<T>(value));
  }

 private:
  StableIValue* values_;
  uint64_t inputs_, outputs_, taken_ = 0, put_ = 0;
};

/// All values at once, as a std::tuple; braces evaluate them in order.
template <class Tuple>
struct TakeAll : std::false_type {};
template <class... T>
struct TakeAll<std::tuple<T...>> : std::true_type {
  static std::tuple<T...> from(Stack& stack) { return std::tuple<T...>{stack.take<T>()...}; }
};
template <class T>
constexpr bool is_tuple = TakeAll<T>::value;

/// How many outputs a function with this result has.
template <class Result>
inline constexpr size_t kOutputs = 1;
template <>
inline constexpr size_t kOutputs<void> = 0;
template <class... T>
inline constexpr size_t kOutputs<std::tuple<T...>> = sizeof...(T);

template <auto fn>
struct Boxed;
template <class Result, class... Args, Result (*fn)(Args...)>
struct Boxed<fn> {
  static void call(StableIValue* values, uint64_t inputs, uint64_t outputs) {
    if (inputs != sizeof...(Args) || outputs != kOutputs<Result>) fail("a kernel does not fit its schema");
    Stack stack(values, inputs, outputs);
    auto args = TakeAll<std::tuple<std::decay_t<Args>...>>::from(stack);
    if constexpr (std::is_void_v<Result>) {
      std::apply(fn, std::move(args));
    } else if constexpr (is_tuple<Result>) {
      std::apply([&](auto&&... result) { (stack.put(std::move(result)), ...); }, std::apply(fn, std::move(args)));
    } else {
      stack.put(std::apply(fn, std::move(args)));
    }
  }
};

/// A typed function as the dispatcher calls it. Parameters: Tensor (by value or const&), int64_t, double, bool, and
/// std::optional of these; the result: one of these, a std::tuple of them, or void.
template <auto fn>
constexpr auto boxed = &Boxed<fn>::call;

/// Calls an operator through the dispatcher, one written in Python as well as any other: call<Tensor>("ns::name", "",
/// x, bias, 3). The arguments must be what its schema says: all of them, in order, and a double where it says float.
/// Result: void, one of the types above, or a std::tuple of them.
template <class Result = void, class... Args>
Result call(const char* op, const char* overload, Args&&... args) {
  StableIValue stack[std::max({sizeof...(Args), kOutputs<Result>, size_t{1}})] = {pack(std::forward<Args>(args))...};
  check(torch_call_dispatcher(op, overload, stack, kVersion), op);
  Stack results(stack, kOutputs<Result>, 0);
  if constexpr (is_tuple<Result>) {
    return TakeAll<Result>::from(results);
  } else if constexpr (!std::is_void_v<Result>) {
    return results.take<Result>();
  }
}

// ---- Registration

/// A piece of an operator library: Library("ns") takes schemas, Library("ns", "CPU") kernels. What it registered lives
/// as long as the object, so keep it in a static.
class Library {
 public:
  explicit Library(const char* ns) {
    check(aoti_torch_library_init_fragment(ns, "ghost_ops", 0, &handle_), "open an operator library");
  }
  Library(const char* ns, const char* dispatch_key) {
    check(aoti_torch_library_init_impl(ns, dispatch_key, "ghost_ops", 0, &handle_), "open an operator library");
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() { aoti_torch_delete_library_object(handle_); }

  Library& define(const char* schema) {
    check(aoti_torch_library_def(handle_, schema), schema);
    return *this;
  }
  Library& impl(const char* name, void (*fn)(StableIValue*, uint64_t, uint64_t)) {
    check(torch_library_impl(handle_, name, fn, kVersion), name);
    return *this;
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

}  // namespace ghost::abi
