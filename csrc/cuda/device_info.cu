#include "launch.h"

namespace ghost::cuda {

const char* device_info(int index, int32_t& processors, int32_t& shared, int32_t& generation) {
  auto error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace ghost::cuda

/// Null where the kernels run on the current device, else why not: none was compiled for it, or its driver is older
/// than the runtime within.
extern "C" __attribute__((visibility("default"))) const char* ghost_ops_cuda_refuses() {
  return ghost::cuda::kernels_float16.refuse();
}
