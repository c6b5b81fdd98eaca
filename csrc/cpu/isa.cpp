#include "isa.h"

#ifdef GHOST_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstring>
#include <string>

#include "exported.h"

extern "C" {
extern const ghost::Kernels ghost_kernels_baseline;
#ifdef GHOST_HAS_AVX2
extern const ghost::Kernels ghost_kernels_avx2;
#endif
#ifdef GHOST_HAS_AVX512
extern const ghost::Kernels ghost_kernels_avx512;
#endif
#ifdef GHOST_HAS_AVX512BF16  // AVX-512's, with products of bfloat16 that the processor has instructions for
void ghost_gemm_bf16_avx512bf16(const ghost::Gemm&);
#endif
#ifdef GHOST_HAS_AMX  // the same by tiles
void ghost_gemm_bf16_amx(const ghost::Gemm&);
void ghost_release_tiles_amx();
#endif
#ifdef GHOST_HAS_WIDE  // only in the development extension: AVX-512's code compiled for AVX2
extern const ghost::Kernels ghost_kernels_wide;
void ghost_gemm_bf16_tiles(const ghost::Gemm&);  // with tiles of AMX in plain C++
void ghost_release_tiles_tiles();
#endif
}

namespace ghost {
namespace {

struct Set {
  const Kernels* kernels;
  bool runs;
};

#if defined(GHOST_HAS_AVX512BF16) || defined(GHOST_HAS_WIDE)
/// Another set's kernels but for products of pairs.
Kernels with_gemm_bf16(Kernels k, const char* name, void (*gemm_bf16)(const Gemm&), void (*release_tiles)()) {
  k.name = name, k.gemm_bf16 = gemm_bf16, k.release_tiles = release_tiles;
  return k;
}
#endif

#ifdef GHOST_HAS_AVX512
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2") != 0;
}
#endif

#ifdef GHOST_HAS_AVX512BF16
/// vdpbf16ps does two products a lane where an FMA does one. AMD starts as many of either; Intel a quarter as many, so
/// that there it is faster to widen the weights.
bool prefers_bf16_products() { return __builtin_cpu_is("amd") != 0; }

bool runs_avx512bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16") != 0; }

Set avx512bf16() {
  static const Kernels kernels = with_gemm_bf16(ghost_kernels_avx512, "avx512bf16", ghost_gemm_bf16_avx512bf16,
                                                ghost_kernels_avx512.release_tiles);
  return {&kernels, runs_avx512bf16()};
}
#endif

#ifdef GHOST_HAS_AMX
/// Linux gives a process the tiles' registers when it asks for them (arch_prctl(2)), for all of its threads.
bool may_use_tiles() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

Set amx() {
  static const Kernels kernels =
      with_gemm_bf16(ghost_kernels_avx512, "amx", ghost_gemm_bf16_amx, ghost_release_tiles_amx);
  static const bool runs =
      runs_avx512bf16() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles();
  return {&kernels, runs};
}
#endif

#ifdef GHOST_HAS_WIDE
bool runs_wide() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") != 0; }

Set tiles() {
  static const Kernels kernels =
      with_gemm_bf16(ghost_kernels_wide, "tiles", ghost_gemm_bf16_tiles, ghost_release_tiles_tiles);
  return {&kernels, runs_wide()};
}
#endif

// fastest first
const Set* sets(int* count) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  static const Set all[] = {
#ifdef GHOST_HAS_AMX
      amx(),
#endif
#ifdef GHOST_HAS_AVX512BF16
      prefers_bf16_products() ? avx512bf16() : Set{&ghost_kernels_avx512, runs_avx512()},
      prefers_bf16_products() ? Set{&ghost_kernels_avx512, runs_avx512()} : avx512bf16(),
#elif defined(GHOST_HAS_AVX512)
      {&ghost_kernels_avx512, runs_avx512()},
#endif
#ifdef GHOST_HAS_AVX2
      {&ghost_kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
                                __builtin_cpu_supports("bmi2") != 0},
#endif
      {&ghost_kernels_baseline, true},
#ifdef GHOST_HAS_WIDE
      {&ghost_kernels_wide, runs_wide()},
      tiles(),
#endif
  };
  *count = sizeof all / sizeof *all;
  return all;
}

const Kernels* fastest() {
  int count;
  const Set* s = sets(&count);
  while (!s->runs) s++;
  return s->kernels;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{fastest()};
  return kernels;
}

}  // namespace

std::string names() {
  int count;
  std::string out;
  for (const Set *s = sets(&count), *end = s + count; s < end; s++)
    if (s->runs) out += (out.empty() ? "" : ",") + std::string(s->kernels->name);
  return out;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool use_isa(const char* isa) {
  const Kernels* kernels = kernels_of(isa);
  if (kernels) chosen().store(kernels, std::memory_order_relaxed);
  return kernels;
}

const Kernels* kernels_of(const char* isa) {
  int count;
  for (const Set *s = sets(&count), *end = s + count; s < end; s++)
    if (s->runs && std::strcmp(s->kernels->name, isa) == 0) return s->kernels;
  return nullptr;
}

}  // namespace ghost

GHOST_EXPORTED const char* ghost_ops_cpu_isa() { return ghost::kernels().name; }

/// Those that run here, the fastest first, with commas between.
GHOST_EXPORTED const char* ghost_ops_cpu_isas() {
  return ghost::guarded("", [] {
    static const std::string all = ghost::names();
    return all.c_str();
  });
}

/// Whether this set runs here: it is then used from now on.
GHOST_EXPORTED int ghost_ops_cpu_use_isa(const char* isa) { return ghost::use_isa(isa); }
