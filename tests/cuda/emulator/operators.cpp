// What csrc/cuda/operators.cpp needs of a device, by the emulator: it is compiled with the CPU's dispatch key, and so
// takes tensors of the CPU through all that tensors of a device go through.
#include "cuda/abi_cuda.h"
#include "run.h"

namespace ghost::cuda {

template <class T>
constexpr Kernels kEmulated = {[](const Call& c) { return run<T>(c, 0); }, [](const Call& c) { return run<T>(c, 0); },
                               [](const Gather& g) { return run<T>(g, 0); }, nullptr};
const Kernels kernels_float32 = kEmulated<float>, kernels_float16 = kEmulated<float16>,
              kernels_bfloat16 = kEmulated<bfloat16>;

const char* device_info(int, int32_t& processors, int32_t& shared) {
  processors = 132, shared = 227 << 10;
  return nullptr;
}

}  // namespace ghost::cuda

extern "C" {
int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) { return *index = 0; }
AOTITorchError aoti_torch_create_cuda_guard(int32_t, CUDAGuardHandle*) { return 0; }
AOTITorchError aoti_torch_delete_cuda_guard(CUDAGuardHandle) { return 0; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) { return 0; }
}
