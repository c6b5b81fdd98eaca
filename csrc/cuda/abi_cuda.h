// What the CUDA library calls of torch beside csrc/abi.h: devices, streams, memory of a device.
#pragma once
#include "abi.h"

struct CUDAGuardOpaque;
using CUDAGuardHandle = CUDAGuardOpaque*;

extern "C" {
int32_t aoti_torch_device_type_cuda();
AOTITorchError aoti_torch_create_cuda_guard(int32_t device_index, CUDAGuardHandle* guard);
AOTITorchError aoti_torch_delete_cuda_guard(CUDAGuardHandle guard);
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
}

namespace ghost::abi {

/// The device of a tensor; raises where that is no CUDA device.
inline int32_t cuda_device(const Tensor& t, const char* what) {
  int32_t type = -1, index = -1;
  check(aoti_torch_get_device_type(t.get(), &type), "get a tensor's device");
  if (type != aoti_torch_device_type_cuda()) fail(std::string(what) + ": expected a tensor on a CUDA device");
  check(aoti_torch_get_device_index(t.get(), &index), "get a tensor's device");
  return index;
}

/// While it lives, a device is the current one of this thread.
class CudaGuard {
 public:
  explicit CudaGuard(int32_t index) { check(aoti_torch_create_cuda_guard(index, &handle_), "change the device"); }
  CudaGuard(const CudaGuard&) = delete;
  CudaGuard& operator=(const CudaGuard&) = delete;
  ~CudaGuard() { aoti_torch_delete_cuda_guard(handle_); }

 private:
  CUDAGuardHandle handle_ = nullptr;
};

/// The stream that the caller has made current on a device.
inline void* cuda_stream(int32_t index) {
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(index, &stream), "get the current stream");
  return stream;
}

/// A new tensor on a device, its elements not initialised, from torch's caching allocator.
inline Tensor empty_on_cuda(std::initializer_list<int64_t> sizes, DType dtype, int32_t index,
                            Layout layout = Layout::contiguous) {
  const auto dim = static_cast<int64_t>(sizes.size());
  const auto known = std::find_if(std::begin(kDTypes), std::end(kDTypes), [=](auto& k) { return k.dtype == dtype; });
  int64_t strides[kMaxDim], next = 1;
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t d = dim_from_innermost(i, dim, layout);
    strides[d] = next;
    next *= std::max<int64_t>(sizes.begin()[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  check(aoti_torch_empty_strided(dim, sizes.begin(), strides, known->code(), aoti_torch_device_type_cuda(), index,
                                 &handle),
        "allocate a tensor on a CUDA device");
  return Tensor(handle);
}

}  // namespace ghost::abi
