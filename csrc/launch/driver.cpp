#include "driver.h"

#include <dlfcn.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>

namespace ghost::launch {
namespace {

std::atomic<const Driver*> opened{nullptr};

std::string loader_error() {
  const char* why = dlerror();
  return why ? why : "the loader does not say why";
}

template <class Entry>
bool find(void* library, const char* name, Entry& entry) {
  entry = reinterpret_cast<Entry>(dlsym(library, name));
  return entry != nullptr;
}

/// A device's primary context, which is retained once and for good, as CUDA's runtime does.
Context primary_context(const Driver& d, int ordinal) {
  static std::mutex mutex;
  static std::map<std::pair<const Driver*, int>, Context> known;
  const std::lock_guard<std::mutex> lock(mutex);
  Context& context = known[{&d, ordinal}];
  if (!context) {
    int device = 0;
    check(d.device(&device, ordinal), "find a device");
    check(d.retain_primary(&context, device), "retain a device's primary context");
  }
  return context;
}

}  // namespace

std::string open(const char* driver_library, const char* torch_library) {
  void* library = dlopen(driver_library, RTLD_LAZY | RTLD_LOCAL);
  if (!library) return std::string("the CUDA driver does not load: ") + loader_error();
  Driver d{};
  const char* missing = nullptr;
  const auto need = [&](const char* name, auto& entry) {
    if (!missing && !find(library, name, entry)) missing = name;
  };
  need("cuLaunchKernelEx", d.launch);
  need("cuCtxGetDevice", d.context_device);
  need("cuCtxPushCurrent_v2", d.push_context);
  need("cuCtxPopCurrent_v2", d.pop_context);
  need("cuDeviceGet", d.device);
  need("cuDevicePrimaryCtxRetain", d.retain_primary);
  need("cuGetErrorName", d.error_name);
  need("cuGetErrorString", d.error_text);
  if (missing) return std::string(driver_library) + " has no " + missing;
  find(library, "cuFuncGetParamInfo", d.parameter);
  void* torch = dlopen(torch_library, RTLD_LAZY | RTLD_NOLOAD);
  if (!torch) return std::string(torch_library) + " is not loaded in this process";
  if (!find(torch, "aoti_torch_get_current_cuda_stream", d.current_stream)) {
    return std::string(torch_library) + " has no aoti_torch_get_current_cuda_stream";
  }
  opened.store(new Driver(d), std::memory_order_release);  // for good: a launch may be reading the one before
  return {};
}

const Driver& driver() {
  const Driver* d = opened.load(std::memory_order_acquire);
  if (!d) throw std::runtime_error("ghost_ops: the CUDA driver is not open");
  return *d;
}

std::string describe(Result error) {
  const char *name = nullptr, *text = nullptr;
  const Driver& d = driver();
  if (d.error_name(error, &name) != 0 || !name) return "CUDA error " + std::to_string(error);
  const bool has_text = d.error_text(error, &text) == 0 && text && *text;
  return has_text ? std::string(name) + ": " + text : std::string(name);
}

void check(Result error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string("ghost_ops: ") + what + " failed: " + describe(error));
}

CurrentDevice::CurrentDevice(int ordinal) {
  const Driver& d = driver();
  int device = -1;
  if (d.context_device(&device) == 0 && device == ordinal) return;
  // Pushed even where the thread has no context yet: one that stayed would become the thread's device.
  check(d.push_context(primary_context(d, ordinal)), "make a device current");
  pushed_ = true;
}

CurrentDevice::~CurrentDevice() {
  Context popped = nullptr;
  if (pushed_) driver().pop_context(&popped);
}

}  // namespace ghost::launch
