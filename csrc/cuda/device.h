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

template <class T>
constexpr bool kIsHalf = false;
template <>
constexpr bool kIsHalf<float16> = true;

/// Read where it is asked for: what follows from it is not kept in registers from stage to stage.
GHOST_DEVICE int thread() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
/// 0, of which the compiler does not know that it is the same for all threads. What is found by way of it stays out of
/// the registers that a warp shares, of which there are few.
GHOST_DEVICE int own_zero() { return static_cast<int>(threadIdx.z); }

GHOST_DEVICE int threads() { return static_cast<int>(blockDim.x); }
GHOST_DEVICE int block() { return static_cast<int>(blockIdx.x); }
GHOST_DEVICE int row_of_blocks() { return static_cast<int>(blockIdx.y); }
GHOST_DEVICE int rows_of_blocks() { return static_cast<int>(gridDim.y); }
GHOST_DEVICE int layer_of_blocks() { return static_cast<int>(blockIdx.z); }

/// Waits for all threads of the block; what they wrote to memory before is seen by all after.
GHOST_DEVICE void sync_block() { __syncthreads(); }

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

/// A value of which the compiler no longer knows what it is: sums with it stay as they are written.
GHOST_DEVICE int opaque(int value) {
  asm("" : "+r"(value));
  return value;
}
GHOST_DEVICE uint32_t opaque(uint32_t value) {
  asm("" : "+r"(value));
  return value;
}
GHOST_DEVICE float opaque(float value) {
  asm("" : "+f"(value));
  return value;
}
template <class V>
GHOST_DEVICE V* opaque(V* value) {
  asm("" : "+l"(value));
  return value;
}

/// The same value in another register: the compiler knows no longer that two values are the same, and copies none of
/// them to where a product wants it.
GHOST_DEVICE float other_register(float value) {
  float other;
  asm volatile("or.b32 %0, %1, %2;" : "=f"(other) : "f"(value), "r"(own_zero()));
  return other;
}

/// Four of the bytes of a word and of zero: by the digits of `which`, the last one first, 0 to 3 are those of the word.
GHOST_DEVICE uint32_t pick_bytes(uint32_t word, uint32_t which) { return __byte_perm(word, 0, which); }

/// The upper half of a product of 64 bits.
GHOST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

/// Copies kBytes (4, 8 or 16) to shared memory; what a thread has begun to copy is there once it has waited.
template <int kBytes>
GHOST_DEVICE void copy_async(void* to, const void* from) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)  // past the first cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(kBytes) : "memory");
}
GHOST_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Before memory is read that an earlier kernel of the stream writes; and: the next kernel may begin, up to there.
GHOST_DEVICE void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
GHOST_DEVICE void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The lower and the upper bound of a value; NaN where it is NaN.
GHOST_DEVICE float clamp(float v, float low, float high) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(v), "f"(low));
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(out) : "f"(high));
  return out;
}

/// a b + sum, rounded once.
GHOST_DEVICE float add_product(float a, float b, float sum) { return __fmaf_rn(a, b, sum); }

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

/// Two values in a word, the first in its lower half.
template <class T>
GHOST_DEVICE uint32_t pack(float first, float second);
template <>
GHOST_DEVICE uint32_t pack<float16>(float first, float second) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
}
template <>
GHOST_DEVICE uint32_t pack<bfloat16>(float first, float second) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
}

/// Two values as a pair in memory; with the lower bound 0, NaN where they are NaN.
template <class T>
GHOST_DEVICE auto plain_pair(float first, float second) {
  if constexpr (sizeof(T) == 2)
    return pack<T>(first, second);
  else
    return float2{first, second};
}
template <class T>
GHOST_DEVICE auto relu_pair(float first, float second) {
  uint32_t out;
  if constexpr (kIsHalf<T>)
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  else if constexpr (sizeof(T) == 2)
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  else
    return float2{clamp(first, 0.f, __int_as_float(0x7f800000)), clamp(second, 0.f, __int_as_float(0x7f800000))};
  if constexpr (sizeof(T) == 2) return out;
}

/// Bounds of two values, NaN where they are NaN.
template <class T>
struct Bounds {
  uint32_t low, high;
  GHOST_DEVICE Bounds(float low, float high) : low(pack<T>(low, low)), high(pack<T>(high, high)) {}
  GHOST_DEVICE uint32_t operator()(float first, float second) const {
    uint32_t v = pack<T>(first, second);
    if constexpr (kIsHalf<T>) {
      asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(v) : "r"(low));
      asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(v) : "r"(high));
    } else {
      asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(v) : "r"(low));
      asm("min.NaN.bf16x2 %0, %0, %1;" : "+r"(v) : "r"(high));
    }
    return v;
  }
};
template <>
struct Bounds<float> {
  float low, high;
  GHOST_DEVICE Bounds(float low, float high) : low(low), high(high) {}
  GHOST_DEVICE float2 operator()(float first, float second) const {
    return {clamp(first, low, high), clamp(second, low, high)};
  }
};

/// Sums and products of two values at once, each rounded once.
GHOST_DEVICE uint32_t add_words(float16, uint32_t a, uint32_t b) {
  asm("add.rn.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
GHOST_DEVICE uint32_t add_words(bfloat16, uint32_t a, uint32_t b) {
  asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(a) : "r"(0x3f803f80u), "r"(b));
  return a;
}
GHOST_DEVICE uint32_t multiply_words(float16, uint32_t a, uint32_t b) {
  asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
GHOST_DEVICE uint32_t multiply_words(bfloat16, uint32_t a, uint32_t b) {
  asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(a) : "r"(b), "r"(0x80008000u));
  return a;
}

/// exp(v); as torch, not the fast one.
GHOST_DEVICE float exponential(float v) { return expf(v); }

/// N 8 x 8 matrices of 16 bits from shared memory, 2 or 4; lanes 8 i to 8 i + 7 give the rows of matrix i (ldmatrix).
GHOST_DEVICE void load_matrices(uint32_t (&a)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(at)
               : "memory");
}
GHOST_DEVICE void load_matrices(uint32_t (&a)[2], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(a[0]), "=r"(a[1])
               : "r"(at)
               : "memory");
}

/// Four such matrices to shared memory (stmatrix, before sm_90 word by word).
GHOST_DEVICE void store_matrices(void* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
#else
  const uint32_t words[4] = {a, b, c, d};
  const int lane = thread() & 31;
#pragma unroll
  for (int i = 0; i < 4; i++)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(__shfl_sync(~0u, at, 8 * i + (lane >> 2)) + (lane & 3) * 4),
                 "r"(words[i])
                 : "memory");
#endif
}

/// The value of the lane whose number differs in these bits.
GHOST_DEVICE float value_across(float v, int bits) { return __shfl_xor_sync(~0u, v, bits); }

/// sum = a b + c: 16 x 16 by 16 x 8, or 16 x 8 by 8 x 8, the warp's fragments as the PTX ISA lays them out (mma.sync
/// m16n8k16 and m16n8k8).
#define GHOST_MULTIPLY_ADD(TYPE, NAME)                                                                             \
  GHOST_DEVICE void multiply_add(TYPE, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,          \
                                 const float (&c)[4]) {                                                            \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                        \
                 : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),  \
                   "f"(c[3]));                                                                                     \
  }                                                                                                                \
  GHOST_DEVICE void multiply_add(TYPE, float (&sum)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4]) { \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME                                             \
                 ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"                                       \
                 : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));                      \
  }
GHOST_MULTIPLY_ADD(float16, "f16")
GHOST_MULTIPLY_ADD(bfloat16, "bf16")
#undef GHOST_MULTIPLY_ADD

}  // namespace ghost::cuda
#endif
