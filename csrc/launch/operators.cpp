// Which sequence of launches a call replays, as operators: one call finds it, allocates and starts the kernels.
//
// They are private: ghost_ops/backends/triton/launch_native.py calls them.
#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "cpu/exported.h"
#include "sequence.h"

namespace ghost::launch {
namespace {

/// What tells one sequence from another: the kind of call, and each tensor's shape, strides, dtype, device, and whether
/// its address is a multiple of 16, which kernels are specialised for.
using Key = std::vector<uint64_t>;

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t hash = key.size();
    for (const uint64_t word : key) {
      hash = (hash ^ word) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

class Table {
 public:
  std::shared_ptr<const Sequence> find(const Key& key) {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = entries_.find(key);
    return found == entries_.end() ? nullptr : found->second.sequence;
  }
  void add(const Key& key, int64_t number, std::shared_ptr<const Sequence> sequence) {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    const auto [at, is_new] = entries_.try_emplace(key);
    if (!is_new) keys_.erase(at->second.number);
    at->second = {number, std::move(sequence)};
    keys_[number] = &at->first;
  }
  /// The sequence of this number goes, once no thread replays it any more.
  void remove(int64_t number) {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    const auto key = keys_.find(number);
    if (key == keys_.end()) return;
    entries_.erase(entries_.find(*key->second));
    keys_.erase(key);
  }
  int64_t size() {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    return static_cast<int64_t>(entries_.size());
  }

 private:
  struct Entry {
    int64_t number;
    std::shared_ptr<const Sequence> sequence;
  };
  std::shared_mutex mutex_;
  std::unordered_map<Key, Entry, Hash> entries_;
  std::unordered_map<int64_t, const Key*> keys_;  // of entries_, whose keys stay where they are
};

Table& table() {
  static auto* table = new Table;  // never destroyed: Python may release a sequence while the process ends
  return *table;
}

/// Writes the key of a call, and the tensors' addresses. False where a tensor has no memory or no strides.
bool describe_call(int64_t kind, const Tensors& arguments, Key& key, std::vector<uint64_t>& addresses) {
  key.clear();
  addresses.clear();
  key.push_back(static_cast<uint64_t>(kind));
  for (const Tensor& t : arguments) {
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    int32_t dtype = 0, device_type = 0, device_index = 0;
    void* data = nullptr;
    if (aoti_torch_get_dim(t.get(), &dim) || aoti_torch_get_sizes(t.get(), &sizes) ||
        aoti_torch_get_strides(t.get(), &strides) || aoti_torch_get_dtype(t.get(), &dtype) ||
        aoti_torch_get_device_type(t.get(), &device_type) || aoti_torch_get_device_index(t.get(), &device_index) ||
        torch_get_mutable_data_ptr(t.get(), &data)) {
      return false;
    }
    const auto address = reinterpret_cast<uint64_t>(data);
    key.push_back(static_cast<uint64_t>(dim) << 33 | uint64_t{address % 16 == 0} << 32 |
                  static_cast<uint64_t>(dtype & 0xff) << 24 | static_cast<uint64_t>(device_type & 0xff) << 16 |
                  static_cast<uint64_t>(device_index & 0xffff));
    key.insert(key.end(), sizes, sizes + dim);
    key.insert(key.end(), strides, strides + dim);
    addresses.push_back(address);
  }
  return true;
}

/// Drops tensors under one hold of Python's lock. From torch 2.13 on, dropping the last reference of C++ takes the lock
/// for each tensor, which costs where they are many, and waits for each where other threads run Python.
class DropTogether {
 public:
  explicit DropTogether(Tensors& tensors) : tensors_(tensors) {}
  DropTogether(const DropTogether&) = delete;
  DropTogether& operator=(const DropTogether&) = delete;
  ~DropTogether() {
    static const auto take = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
    static const auto give = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
    if (!take || !give) return;
    const int state = take();
    tensors_.clear();
    give(state);
  }

 private:
  Tensors& tensors_;
};

/// The results, or nothing where no sequence is known for such a call.
std::optional<Tensors> replay(Tensors arguments, int64_t kind) {
  const DropTogether dropped(arguments);
  static thread_local Key key;  // both are kept, so that a call allocates nothing here
  static thread_local std::vector<uint64_t> addresses;
  if (!describe_call(kind, arguments, key, addresses)) return std::nullopt;
  const std::shared_ptr<const Sequence> sequence = table().find(key);
  if (!sequence) return std::nullopt;
  return sequence->replay(addresses);
}

void add(const Tensors& arguments, int64_t kind, int64_t number, const Tensors& allocations, const Tensors& results,
         const Words& words) {
  Key key;
  std::vector<uint64_t> addresses;
  if (!describe_call(kind, arguments, key, addresses)) abi::fail("the argument of a sequence has no memory");
  table().add(key, number, std::make_shared<const Sequence>(arguments, allocations, results, words));
}

abi::Library& define() {
  static abi::Library library("ghost_ops");
  library.define("_launch_replay(Tensor[] arguments, int kind) -> Tensor[]?");
  library.define(
      "_launch_add(Tensor[] arguments, int kind, int number, Tensor[] allocations, Tensor[] results, int[] words) "
      "-> ()");
  return library;
}

abi::Library& implement() {
  static abi::Library library("ghost_ops", "CompositeExplicitAutograd");
  library.impl("_launch_replay", abi::boxed<replay>);
  library.impl("_launch_add", abi::boxed<add>);
  return library;
}

[[maybe_unused]] const abi::Library *schemas = &define(), *kernels = &implement();

}  // namespace
}  // namespace ghost::launch

/// Opens the driver (driver.h). Returns null, or why that fails, which lives until the thread's next call.
GHOST_EXPORTED const char* ghost_ops_launch_open(const char* driver_library, const char* torch_library) {
  static thread_local std::string why;
  return ghost::guarded<const char*>("there is no memory", [&]() -> const char* {
    why = ghost::launch::open(driver_library, torch_library);
    return why.empty() ? nullptr : why.c_str();
  });
}

GHOST_EXPORTED void ghost_ops_launch_remove(int64_t number) {
  ghost::guarded(0, [&] {
    ghost::launch::table().remove(number);
    return 0;
  });
}

/// How many sequences are kept; -1 where that cannot be told.
GHOST_EXPORTED int64_t ghost_ops_launch_count() {
  return ghost::guarded(int64_t{-1}, [] { return ghost::launch::table().size(); });
}
