#include "torch.h"

#include <sys/resource.h>

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <thread>

#include "abi_threads.h"

struct AtenTensorOpaque {
  std::shared_ptr<char> memory;  // the first element
  std::vector<int64_t> sizes, strides;
  int32_t dtype;
  int64_t span;
};
struct StableListOpaque {
  std::vector<StableIValue> items;
};

namespace sanitize {

Settings settings;

namespace {

using Kernel = void (*)(StableIValue*, uint64_t, uint64_t);
struct Operator {
  Schema schema;
  Kernel kernel = nullptr;
};

std::map<std::string, Operator>& table() {
  static std::map<std::string, Operator> all;
  return all;
}

struct DType {
  const char* name;
  int32_t code;
  int64_t bytes;
};
constexpr DType kDTypes[] = {{"uint8", 0, 1},   {"int32", 3, 4},   {"int64", 4, 8},    {"float16", 5, 2},
                             {"float32", 6, 4}, {"float64", 7, 8}, {"bfloat16", 15, 2}};

thread_local bool in_parallel = false;
thread_local uint32_t thread_number = 0;

/// The types in "(Tensor x, int n)", or in "Tensor".
std::vector<std::string> types_in(std::string text) {
  if (!text.empty() && text[0] == '(') text = text.substr(1, text.find(')') - 1);
  std::vector<std::string> found;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(", ", at), text.size());
    const std::string one = text.substr(at, end - at);
    found.push_back(one.substr(0, one.find(' ')));
    at = end + 2;
  }
  return found;
}

/// Floats from the first to the last element, both counted; -1 where there are too many.
int64_t elements(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  int64_t last = 0;
  for (size_t i = 0; i < sizes.size(); i++) {
    if (sizes[i] < 0 || strides[i] < 0) return -1;
    if (sizes[i] == 0) return 0;
    int64_t reach;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach) || __builtin_add_overflow(last, reach, &last))
      return -1;
  }
  return last + 1;
}

}  // namespace

int32_t code_of_name(const std::string& name) {
  for (const DType& d : kDTypes)
    if (name == d.name) return d.code;
  return -1;
}

int64_t element_size(int32_t dtype) {
  for (const DType& d : kDTypes)
    if (dtype == d.code) return d.bytes;
  throw std::invalid_argument("a dtype that is not known");
}

AtenTensorHandle make_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t dtype) {
  const int64_t count = elements(sizes, strides), size = element_size(dtype);
  if (count < 0 || count > settings.most_bytes / size) throw std::bad_alloc();
  const auto block = std::make_shared<Block>(count * size, settings.place, settings.fill);
  return new AtenTensorOpaque{{block, block->data()}, sizes, strides, dtype, count * size};
}

void leave_out_pool() {
  rlimit addresses{};
  getrlimit(RLIMIT_AS, &addresses);
  addresses.rlim_cur = std::min<rlim_t>(addresses.rlim_max, rlim_t{1} << 62);
  setrlimit(RLIMIT_AS, &addresses);
}

char* data_of(AtenTensorHandle tensor) { return tensor->memory.get(); }
int64_t span_of(AtenTensorHandle tensor) { return tensor->span; }
const std::vector<int64_t>& sizes_of(AtenTensorHandle tensor) { return tensor->sizes; }
int32_t dtype_of(AtenTensorHandle tensor) { return tensor->dtype; }

StableIValue make_list(const std::vector<StableIValue>& items) {
  return reinterpret_cast<StableIValue>(new StableListOpaque{items});
}
std::vector<StableIValue> items_of(StableIValue list) { return reinterpret_cast<StableListHandle>(list)->items; }

const Schema& schema_of(const std::string& op) { return table().at(op).schema; }

std::vector<std::string> operators() {
  std::vector<std::string> names;
  for (const auto& [name, op] : table())
    if (op.kernel) names.push_back(name);
  return names;
}

void release(StableIValue value, const std::string& type) {
  if (type == "Tensor") {
    delete reinterpret_cast<AtenTensorHandle>(value);
  } else if (type == "Tensor?") {
    const std::unique_ptr<StableIValue> inner(reinterpret_cast<StableIValue*>(value));
    if (inner) release(*inner, "Tensor");
  } else if (type == "Tensor[]" || type == "int[]") {
    const std::unique_ptr<StableListOpaque> list(reinterpret_cast<StableListHandle>(value));
    if (type == "Tensor[]")
      for (const StableIValue item : list->items) release(item, "Tensor");
  }
}

Outcome call(const std::string& op, const std::vector<StableIValue>& arguments) {
  const Operator& o = table().at(op);
  std::vector<StableIValue> stack = arguments;
  stack.resize(std::max(arguments.size(), o.schema.results.size()));
  try {
    o.kernel(stack.data(), arguments.size(), o.schema.results.size());
  } catch (const std::exception& error) {
    return {{}, *error.what() ? error.what() : "an error without a message"};
  }
  stack.resize(o.schema.results.size());
  return {stack, ""};
}

}  // namespace sanitize

namespace {

/// 0, or 1 where `body` throws: nothing goes through a C interface.
template <class Body>
AOTITorchError caught(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

/// The value that is asked for.
template <class To, class From>
AOTITorchError got(To* to, const From& from) {
  *to = from;
  return 0;
}

}  // namespace

using sanitize::table;

extern "C" {

/// Of the fuzzer's driver (fuzz_driver.cpp), where that is not part of the program.
__attribute__((weak)) void __sanitizer_cov_trace_pc() {}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle t, AtenTensorHandle* another) {
  return caught([&] { *another = new AtenTensorOpaque(*t); });
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle t) { return delete t, 0; }
AOTITorchError aoti_torch_get_dim(AtenTensorHandle t, int64_t* dim) {
  return got(dim, static_cast<int64_t>(t->sizes.size()));
}
AOTITorchError aoti_torch_get_numel(AtenTensorHandle t, int64_t* numel) {
  *numel = 1;
  for (const int64_t size : t->sizes) *numel *= size;
  return 0;
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle t, int64_t** sizes) { return got(sizes, t->sizes.data()); }
AOTITorchError aoti_torch_get_strides(AtenTensorHandle t, int64_t** strides) { return got(strides, t->strides.data()); }
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle t, int32_t* dtype) { return got(dtype, t->dtype); }
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) { return got(type, 0); }
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) { return got(index, -1); }
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle, int64_t* offset) { return got(offset, 0); }
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle t, const void** data) { return got(data, t->memory.get()); }
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle t, void** data) { return got(data, t->memory.get()); }
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* tensor) {
  return caught([&] { *tensor = sanitize::make_tensor({sizes, sizes + dim}, {strides, strides + dim}, dtype); });
}
AOTITorchError torch_from_blob(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t,
                               int32_t dtype, int32_t, int32_t, AtenTensorHandle* tensor, int32_t, const uint8_t*,
                               int64_t, void (*deleter)(void* data, void* context), void* context) {
  return caught([&] {
    const std::vector<int64_t> counts(sizes, sizes + dim), steps(strides, strides + dim);
    const int64_t span = sanitize::elements(counts, steps) * sanitize::element_size(dtype);
    auto made = std::make_unique<AtenTensorOpaque>(AtenTensorOpaque{{}, counts, steps, dtype, span});
    made->memory = {static_cast<char*>(data), [=](char* first) { deleter(first, context); }};
    *tensor = made.release();
  });
}
AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle, int64_t, const int64_t*, const int64_t*, int64_t,
                                              AtenTensorHandle*) {
  return 1;  // no CPU kernel asks for it
}

int32_t aoti_torch_device_type_cpu() { return 0; }
int32_t aoti_torch_layout_strided() { return 0; }
int32_t aoti_torch_dtype_float32() { return sanitize::code_of_name("float32"); }
int32_t aoti_torch_dtype_bfloat16() { return sanitize::code_of_name("bfloat16"); }
int32_t aoti_torch_dtype_float64() { return sanitize::code_of_name("float64"); }
int32_t aoti_torch_dtype_float16() { return sanitize::code_of_name("float16"); }
int32_t aoti_torch_dtype_int64() { return sanitize::code_of_name("int64"); }
int32_t aoti_torch_dtype_int32() { return sanitize::code_of_name("int32"); }
int32_t aoti_torch_dtype_uint8() { return sanitize::code_of_name("uint8"); }

AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, uint32_t, TorchLibraryHandle* library) {
  return got(library, nullptr);
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle* library) {
  return got(library, nullptr);
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return 0; }
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char* text) {
  const std::string schema = text;
  const size_t begin = schema.find('('), arrow = schema.find(" -> ");
  table()[schema.substr(0, begin)].schema = {sanitize::types_in(schema.substr(begin, arrow - begin)),
                                             sanitize::types_in(schema.substr(arrow + 4))};
  return 0;
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, sanitize::Kernel kernel, uint64_t) {
  return got(&table()[name].kernel, kernel);
}
AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  std::string op = name;  // "ghost_ops::depthwise_reference"
  op = op.substr(op.find("::") + 2);
  op = op.substr(0, op.rfind("_reference"));
  const auto& types = sanitize::schema_of(op).arguments;
  for (size_t i = 0; i < types.size(); i++) sanitize::release(stack[i], types[i]);
  return 1;
}

AOTITorchError torch_list_size(StableListHandle list, size_t* size) { return got(size, list->items.size()); }
AOTITorchError torch_list_get_item(StableListHandle list, size_t index, StableIValue* element) {
  return got(element, list->items.at(index));
}
AOTITorchError torch_delete_list(StableListHandle list) { return delete list, 0; }
AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* list) {
  return caught([&] { *list = new StableListOpaque; });
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue element) {
  return caught([&] { list->items.push_back(element); });
}

/// As at::parallel_for: as many threads as have work of `grain`, a piece each, the first for the caller; in a thread of
/// its own it runs on that one. Threads are std::thread, which ThreadSanitizer sees begin and end.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc body, void* context) {
  const int64_t n = end - begin, threads = std::min<int64_t>(sanitize::settings.threads, (n + grain - 1) / grain);
  if (n <= 0) return 0;
  if (threads <= 1 || sanitize::in_parallel) return body(begin, end, context), 0;
  const int64_t piece = (n + threads - 1) / threads;
  const auto run = [&](int64_t i) {
    sanitize::in_parallel = true, sanitize::thread_number = static_cast<uint32_t>(i);
    if (begin + i * piece < end) body(begin + i * piece, std::min(end, begin + (i + 1) * piece), context);
    sanitize::in_parallel = false, sanitize::thread_number = 0;
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; i++) others.emplace_back(run, i);
  run(0);
  for (std::thread& t : others) t.join();
  return 0;
}
AOTITorchError torch_get_num_threads(uint32_t* threads) {
  return got(threads, sanitize::in_parallel ? 1u : sanitize::settings.threads);
}
AOTITorchError torch_get_thread_idx(uint32_t* thread) { return got(thread, sanitize::thread_number); }
}
