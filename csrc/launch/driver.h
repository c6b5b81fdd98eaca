// The CUDA driver, as far as launches need it: types declared by hand, entry points looked up at run time. So the
// library is built without CUDA and loads where there is none.
#pragma once
#include <cstdint>
#include <string>

namespace ghost::launch {

// ---- Types of the driver's interface (cuda.h). A test compares their layouts with those of cuda.h.

using Result = int;  // CUresult: 0 is success
constexpr Result kInvalidValue = 1;
using Function = struct FunctionOpaque*;  // CUfunction
using Context = struct ContextOpaque*;    // CUcontext
using Stream = struct StreamOpaque*;      // CUstream

/// CUlaunchAttribute: a number, and 64 bytes of which it uses some.
struct Attribute {
  static constexpr int kProgrammaticStreamSerialization = 6;
  int id;
  char pad[4];
  union {
    int number;
    alignas(8) char bytes[64];
  } value;
};

/// CUlaunchConfig.
struct Config {
  unsigned grid_x, grid_y, grid_z;
  unsigned threads_x, threads_y, threads_z;
  unsigned shared_bytes;
  Stream stream;
  Attribute* attributes;
  unsigned attribute_count;
};

/// The entry points.
struct Driver {
  Result (*launch)(const Config* config, Function function, void** parameters, void** extra);
  Result (*context_device)(int* device);  // of the thread's current context; an error where it has none
  Result (*push_context)(Context context);
  Result (*pop_context)(Context* context);
  Result (*device)(int* device, int ordinal);
  Result (*retain_primary)(Context* context, int device);
  Result (*error_name)(Result error, const char** name);
  Result (*error_text)(Result error, const char** text);
  /// Offset and size of a kernel's parameter, kInvalidValue past the last one. Null before CUDA 12.4.
  Result (*parameter)(Function function, size_t index, size_t* offset, size_t* size);
  /// Torch's: the stream that the caller has made current on a device. 0 is success.
  int32_t (*current_stream)(int32_t device, void** stream);
};

/// Opens the driver's library, and finds torch's CUDA library in the process. Returns why that fails, as the end of a
/// sentence; empty where it succeeds. A second call takes effect for all launches from then on.
std::string open(const char* driver_library, const char* torch_library);

/// The driver that was opened last. Throws where there is none.
const Driver& driver();

/// The driver's words for an error, such as "CUDA_ERROR_INVALID_VALUE: invalid argument".
std::string describe(Result error);

/// Throws where a driver call returned an error; `what` begins the message.
void check(Result error, const char* what);

/// While it lives, a context of this device is the thread's current one.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal);
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice();

 private:
  bool pushed_ = false;
};

}  // namespace ghost::launch
