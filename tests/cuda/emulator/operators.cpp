// What csrc/cuda/operators.cpp needs of a device, by the emulator: it is compiled with the CPU's dispatch key, and so
// takes tensors of the CPU through all that tensors of a device go through.
#include "cuda/abi_cuda.h"
#include "cuda/plan.h"
#include "run.h"

namespace ghost::cuda {

namespace {
int order = 0, device = 0;
}  // namespace

template <class T>
constexpr Kernels kEmulated = {[](const Call& c) { return run<T>(c, order); },
                               [](const Means& m) { return run<T>(m, order); },
                               [](const Gather& g) { return run<T>(g, order); }, nullptr};
const Kernels kernels_float32 = kEmulated<float>, kernels_float16 = kEmulated<float16>,
              kernels_bfloat16 = kEmulated<bfloat16>;

/// Device 1 has one processor, whose thread blocks have several images.
const char* device_info(int index, int32_t& processors, int32_t& shared, int32_t& generation) {
  processors = index ? 1 : 132, shared = 227 << 10, generation = 9;
  return nullptr;
}

}  // namespace ghost::cuda

extern "C" {
int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = ghost::cuda::device;
  return 0;
}
AOTITorchError aoti_torch_create_cuda_guard(int32_t, CUDAGuardHandle*) { return 0; }
AOTITorchError aoti_torch_delete_cuda_guard(CUDAGuardHandle) { return 0; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) { return 0; }

#define GHOST_EMULATOR_API __attribute__((visibility("default")))

/// The order of threads: 0 forward, 1 backward, then seeds of random ones.
GHOST_EMULATOR_API void ghost_emulated_set_order(int to) { ghost::cuda::order = to; }

/// On which device calls run: 0 or 1.
GHOST_EMULATOR_API void ghost_emulated_set_device(int to) { ghost::cuda::device = to; }

/// Leaves out the barrier in this line of this file; a line of 0: none.
GHOST_EMULATOR_API void ghost_emulated_leave_out(const char* file, int line) {
  ghost::cuda::emulated::left_out_file = file, ghost::cuda::emulated::left_out_line = line;
}

/// From now on accesses to matrices in shared memory are counted, or no longer; what was counted so far, a line for
/// each kind: file, load or store, matrices, cycles.
GHOST_EMULATOR_API const char* ghost_emulated_banks(int count) {
  static std::string said;
  said.clear();
  for (const auto& [place, n] : ghost::cuda::emulated::banks)
    said += std::string(place.first) + ' ' + std::string(place.second) + ' ' + std::to_string(n.matrices) + ' ' +
            std::to_string(n.cycles) + '\n';
  ghost::cuda::emulated::banks.clear();
  ghost::cuda::emulated::counts_banks = count;
  return said.c_str();
}

/// What the emulator says of a block whose odd threads, or the odd lanes of whose warps, part from the others.
GHOST_EMULATOR_API const char* ghost_emulated_parted(int warps) {
  using namespace ghost::cuda;
  return emulated::run(1, 1, 1, 64, 512, emulated::kForward, 0, [=](unsigned char* shared) {
    if (warps) {
      uint32_t a[4] = {};
      float c[4] = {};
      thread() % 2 ? load_matrices(a, shared) : multiply_add(float16{}, c, a, 0, 0, c);
    } else if (thread() % 2) {
      sync_block();
    } else {
      sync_block();
    }
  });
}
}
