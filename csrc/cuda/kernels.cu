// The kernels and their launches, compiled once for each dtype (GHOST_DTYPE).
#include "ghost_module.h"
#include "launch.h"

#define GHOST_JOIN(a, b) a##b
#define GHOST_NAME(a, b) GHOST_JOIN(a, b)

namespace ghost::cuda {
namespace {

using float32 = float;
using T = GHOST_DTYPE;
constexpr int kMostThreads = 512, kOwnShared = 48 << 10;  // bytes that a block may have without asking

__global__ void __launch_bounds__(kMostThreads, 1)
    bottleneck_kernel(const __grid_constant__ Block b, const __grid_constant__ Plan plan,
                      const __grid_constant__ Arguments<T> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  bottleneck(b, plan, a, shared);
}

__global__ void __launch_bounds__(kMostThreads, 1)
    module_kernel(const __grid_constant__ Block b, const __grid_constant__ Plan plan,
                  const __grid_constant__ Arguments<T> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  ghost_module(b, plan, a, shared);
}

__global__ void means_kernel(T* out, const float* sums, int64_t images, int tiles, int channels, int64_t pixels) {
  means(out, sums, images, tiles, channels, pixels);
}

__global__ void gather_kernel(T* matrices, float* vectors, const float* packed, const int32_t* index, int64_t count,
                              int64_t all) {
  gather(matrices, vectors, packed, index, count, all);
}

const char* text(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // else the next launch would be told of it again
  return cudaGetErrorString(error);
}

const char* start(void (*kernel)(Block, Plan, Arguments<T>), const Call& call, Phase phase) {
  const Plan& plan = call.plan;
  if (plan.shared > kOwnShared) {  // by always the same number: threads that launch at once must not lower it
    const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, call.most_shared);
    if (error != cudaSuccess) return text(error);
  }
  const Arguments<T> a{static_cast<const T*>(call.x),
                       static_cast<const T*>(call.matrices),
                       call.vectors,
                       static_cast<T*>(call.out),
                       call.sums,
                       static_cast<const T*>(call.residual),
                       static_cast<const T*>(call.scale),
                       call.vectors_of_x,
                       phase};
  const auto blocks = static_cast<unsigned>(call.images * plan.tiles());
  kernel<<<blocks, plan.threads, plan.shared, static_cast<cudaStream_t>(call.stream)>>>(call.block, plan, a);
  return text(cudaGetLastError());
}

const char* run_bottleneck(const Call& call) {
  if (call.plan.launches == 1) return start(bottleneck_kernel, call, Phase::whole);
  const char* why = start(bottleneck_kernel, call, Phase::squeeze);
  return why ? why : start(bottleneck_kernel, call, Phase::project);
}

const char* run_module(const Call& call) {
  const char* why = start(module_kernel, call, Phase::whole);
  if (why || !call.squeeze) return why;
  const int64_t count = call.images * call.block.kept2;
  means_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, static_cast<cudaStream_t>(call.stream)>>>(
      static_cast<T*>(call.squeeze), call.sums, call.images, call.plan.tiles(), call.block.kept2,
      int64_t{call.block.height} * call.block.width);
  return text(cudaGetLastError());
}

const char* run_gather(const Gather& g) {
  gather_kernel<<<static_cast<unsigned>((g.all + 255) / 256), 256, 0, static_cast<cudaStream_t>(g.stream)>>>(
      static_cast<T*>(g.matrices), g.vectors, g.packed, g.index, g.count, g.all);
  return text(cudaGetLastError());
}

const char* refuse() {
  cudaFuncAttributes found;
  return text(cudaFuncGetAttributes(&found, bottleneck_kernel));
}

}  // namespace

extern const Kernels GHOST_NAME(kernels_, GHOST_DTYPE);
const Kernels GHOST_NAME(kernels_, GHOST_DTYPE) = {run_bottleneck, run_module, run_gather, refuse};

}  // namespace ghost::cuda
