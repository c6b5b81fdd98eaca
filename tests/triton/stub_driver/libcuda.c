/* Stands for libcuda.so.1, and for torch's function that tells the current stream: it starts nothing, and notes what it
   is given. Contexts are the numbers of their devices, plus one. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_FUNCTIONS 4096
#define MOST_PARAMETERS 160
#define NONE 0

typedef struct {
  unsigned grid[3], block[3], shared;
  uint64_t stream;
  struct Attribute { int id; char pad[4]; int value; char rest[60]; } *attributes;
  unsigned attribute_count;
} Config;

typedef struct {
  uint64_t function, stream, context;
  unsigned grid[3], block[3], shared, attribute_count, attribute, attribute_value, count;
  uint64_t values[MOST_PARAMETERS]; /* each in the low bytes */
} Launch;

typedef struct {
  uint64_t handle;
  unsigned count;
  unsigned char sizes[MOST_PARAMETERS];
} Function;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Function functions[MOST_FUNCTIONS];
static unsigned function_count;
static Launch *launches;
static unsigned launch_count, room;
static int notes = 1, error_after = -1, error_code, retained;
static uint64_t streams = 77;
static __thread uint64_t stack[16] = {1};
static __thread unsigned depth = 1;

/* ---- What tests ask for. */

void stub_reset(void) {
  launch_count = 0, error_after = -1, notes = 1, streams = 77, stack[0] = 1, depth = 1, retained = 0;
}
void stub_notes(int on) { notes = on; }
void stub_fail(int after, int code) { error_after = after, error_code = code; }
void stub_stream(uint64_t stream) { streams = stream; }
void stub_context(int device) { depth = device >= 0, stack[0] = (uint64_t)device + 1; }
int stub_retained(void) { return retained; }
unsigned stub_launch_count(void) { return launch_count; }
const Launch *stub_launch(unsigned i) { return launches + i; }

/* A function's parameters: bytes of each. Returns its handle. */
uint64_t stub_function(unsigned count, const unsigned char *sizes) {
  pthread_mutex_lock(&mutex);
  if (function_count == MOST_FUNCTIONS || count > MOST_PARAMETERS) abort();
  Function *f = functions + function_count++;
  f->handle = 0x7f0000000000u + 64 * function_count;
  f->count = count;
  memcpy(f->sizes, sizes, count);
  pthread_mutex_unlock(&mutex);
  return f->handle;
}

static Function *find(uint64_t handle) {
  const uint64_t i = (handle - 0x7f0000000000u) / 64;
  return i >= 1 && i <= function_count && functions[i - 1].handle == handle ? functions + i - 1 : 0;
}

/* ---- The driver's interface. */

static uint64_t current(void) { return depth ? stack[depth - 1] : NONE; }

int cuLaunchKernelEx(const Config *config, uint64_t handle, void **parameters, void **extra) {
  if (!current()) return 201;
  if (extra) return 1;
  if (error_after >= 0 && error_after-- == 0) return error_code;
  if (!notes) return 0;
  const Function *f = find(handle);
  if (!f) return 400;
  pthread_mutex_lock(&mutex);
  if (launch_count == room) launches = realloc(launches, (room = 2 * room + 64) * sizeof *launches);
  Launch *launch = launches + launch_count++;
  memset(launch, 0, sizeof *launch);
  launch->function = handle, launch->stream = config->stream, launch->context = current();
  memcpy(launch->grid, config->grid, sizeof launch->grid);
  memcpy(launch->block, config->block, sizeof launch->block);
  launch->shared = config->shared, launch->attribute_count = config->attribute_count, launch->count = f->count;
  if (config->attribute_count) {
    launch->attribute = config->attributes[0].id, launch->attribute_value = config->attributes[0].value;
  }
  for (unsigned i = 0; i < f->count; i++) memcpy(launch->values + i, parameters[i], f->sizes[i]);
  pthread_mutex_unlock(&mutex);
  return 0;
}
int cuFuncGetParamInfo(uint64_t handle, size_t i, size_t *offset, size_t *size) {
  const Function *f = find(handle);
  if (!f) return 400;
  if (i >= f->count) return 1;
  size_t at = 0;
  for (size_t k = 0; k <= i; k++) {
    *size = f->sizes[k], *offset = at = (at + *size - 1) / *size * *size;
    at += *size;
  }
  return 0;
}
int cuCtxGetCurrent(uint64_t *context) { return *context = current(), 0; }
int cuCtxSetCurrent(uint64_t context) { return depth = 1, stack[0] = context, 0; }
int cuCtxGetDevice(int *device) { return current() ? *device = (int)current() - 1, 0 : 201; }
int cuCtxPushCurrent_v2(uint64_t context) {
  if (depth == 16) return 1;
  return stack[depth++] = context, 0;
}
int cuCtxPopCurrent_v2(uint64_t *context) {
  if (!depth) return 201;
  return *context = stack[--depth], 0;
}
int cuDeviceGet(int *device, int ordinal) { return ordinal < 8 ? *device = ordinal, 0 : 101; }
int cuDevicePrimaryCtxRetain(uint64_t *context, int device) {
  retained++;
  return *context = (uint64_t)device + 1, 0;
}
int cuPointerGetAttribute(uint64_t *value, int attribute, uint64_t pointer) {
  (void)attribute;
  return *value = pointer, 0;
}
int cuGetErrorName(int error, const char **name) {
  if (error == 999999) return 1;
  return *name = error == 701 ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" : "CUDA_ERROR_UNKNOWN", 0;
}
int cuGetErrorString(int error, const char **text) {
  return *text = error == 701 ? "too many resources requested for launch" : "unknown error", 0;
}

/* What Triton's module is linked against beside these, and does not call here. */
#define UNUSED(name) \
  int name(void) { return 801; }
UNUSED(cuCtxGetLimit) UNUSED(cuCtxSetLimit) UNUSED(cuDeviceGetAttribute) UNUSED(cuDriverGetVersion)
UNUSED(cuFuncGetAttribute) UNUSED(cuFuncSetAttribute) UNUSED(cuFuncSetCacheConfig) UNUSED(cuModuleGetFunction)
UNUSED(cuModuleLoadData)

/* ---- Torch's. */

int32_t aoti_torch_get_current_cuda_stream(int32_t device, void **stream) {
  return *stream = (void *)(uintptr_t)(streams + 1000 * device), 0;
}
