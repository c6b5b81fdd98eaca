// The kernels and their launches, compiled once for each dtype (GHOST_DTYPE).
#include "launch.h"
#include "strip_kernel.h"

#define GHOST_JOIN(a, b) a##b
#define GHOST_NAME(a, b) GHOST_JOIN(a, b)

namespace ghost::cuda {
namespace {

using float32 = float;
using T = GHOST_DTYPE;
constexpr int kMostThreads = 512, kOwnShared = 48 << 10;  // bytes that a block may have without asking

__global__ void __launch_bounds__(kMostThreads, 1)
    strip_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Arguments<T> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  strip(launch, a, shared);
}

__global__ void means_kernel(const __grid_constant__ Means m) {
  means(static_cast<T*>(m.out), m.sums, m.images, m.parts, m.channels, m.primary, m.multiplier, m.inverse_pixels);
}

__global__ void gather_kernel(const __grid_constant__ Gather g) {
  gather(static_cast<T*>(g.matrices), g.vectors, g.packed, g.index, g.count, g.all);
}

const char* text(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // else the next launch would be told of it again
  return cudaGetErrorString(error);
}

const char* run_strip(const Call& call) {
  const Launch& l = call.launch;
  if (l.shared > kOwnShared) {  // by always the same number: threads that launch at once must not lower it
    const auto error =
        cudaFuncSetAttribute(strip_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, call.most_shared);
    if (error != cudaSuccess) return text(error);
  }
  const Arguments<T> a = arguments_of<T>(call);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(l.places()), static_cast<unsigned>(l.grid), static_cast<unsigned>(l.chunks));
  config.blockDim = dim3(static_cast<unsigned>(l.threads));
  config.dynamicSmemBytes = static_cast<size_t>(l.shared), config.stream = static_cast<cudaStream_t>(call.stream);
  config.attrs = &overlap, config.numAttrs = call.overlaps;
  return text(cudaLaunchKernelEx(&config, strip_kernel, l, a));
}

unsigned blocks_for(int64_t count) { return static_cast<unsigned>((count + 255) / 256); }

const char* run_means(const Means& m) {
  means_kernel<<<blocks_for(m.images * m.channels), 256, 0, static_cast<cudaStream_t>(m.stream)>>>(m);
  return text(cudaGetLastError());
}

const char* run_gather(const Gather& g) {
  gather_kernel<<<blocks_for(g.all), 256, 0, static_cast<cudaStream_t>(g.stream)>>>(g);
  return text(cudaGetLastError());
}

const char* refuse() {
  cudaFuncAttributes found;
  return text(cudaFuncGetAttributes(&found, strip_kernel));
}

}  // namespace

extern const Kernels GHOST_NAME(kernels_, GHOST_DTYPE);
const Kernels GHOST_NAME(kernels_, GHOST_DTYPE) = {run_strip, run_means, run_gather, refuse};

}  // namespace ghost::cuda
