// What the kernels ask of a CUDA device, and nothing else: threads, barriers, products of a warp, conversions.
//
// Under nvcc these are intrinsics. With GHOST_HOST_EMULATION the same names come from the tests' emulator, so that
// whole kernels run on a machine without a device. Kernels use no other feature of CUDA.
#pragma once
#include <cstdint>

#ifdef GHOST_HOST_EMULATION
#include "emulated.h"  // tests/cuda/emulator
#else

#define GHOST_DEVICE __device__ __forceinline__

namespace ghost::cuda {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

GHOST_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
GHOST_DEVICE int threads() { return static_cast<int>(blockDim.x); }
GHOST_DEVICE int64_t block() { return blockIdx.x; }

/// Waits for all threads of the block; what they wrote to memory before is seen by all after.
GHOST_DEVICE void sync_block() { __syncthreads(); }

/// Brings the lanes of a warp together again, which what follows asks of them: ldmatrix, mma.
GHOST_DEVICE void sync_warp() { __syncwarp(); }

GHOST_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

/// A value of memory that nothing writes while the kernel runs.
template <class V>
GHOST_DEVICE V constant(const V* p) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8);
  V value;
  if constexpr (sizeof(V) == 4) {
    const auto raw = __ldg(reinterpret_cast<const unsigned*>(p));
    __builtin_memcpy(&value, &raw, 4);
  } else {
    const auto raw = __ldg(reinterpret_cast<const uint2*>(p));
    __builtin_memcpy(&value, &raw, 8);
  }
  return value;
}

GHOST_DEVICE float widen(float v) { return v; }
GHOST_DEVICE float widen(float16 v) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
  return out;
}
GHOST_DEVICE float widen(bfloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }

template <class T>
GHOST_DEVICE T narrow(float v);
template <>
GHOST_DEVICE float narrow<float>(float v) {
  return v;
}
template <>
GHOST_DEVICE float16 narrow<float16>(float v) {
  float16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
  return out;
}
template <>
GHOST_DEVICE bfloat16 narrow<bfloat16>(float v) {
  bfloat16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
  return out;
}

/// exp(v); as torch, not the fast one.
GHOST_DEVICE float exponential(float v) { return expf(v); }

/// Four 8 x 8 matrices of 16 bits from shared memory; lanes 8 i to 8 i + 7 give the rows of matrix i (ldmatrix.x4).
GHOST_DEVICE void load_matrices(uint32_t (&a)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(at)
               : "memory");
}

/// c += a b: 16 x 16 by 16 x 8, the warp's fragments as the PTX ISA lays them out (mma.sync m16n8k16).
GHOST_DEVICE void multiply_add(float16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
GHOST_DEVICE void multiply_add(bfloat16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace ghost::cuda
#endif
