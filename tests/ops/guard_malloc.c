/* Loaded before torch (LD_PRELOAD): what torch and the kernels allocate for tensors and to work in, which is what they
   align, lies between pages that must not be touched, in turns at the end and at the beginning of its own pages.
   Addresses are never used again, so that a touch of freed memory ends the process too. What alignment leaves free of
   the own pages is filled with a pattern, and looked at when the block is freed. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void __libc_free(void*);
extern void* __libc_realloc(void*, size_t);

enum { kPage = 4096, kFill = 0xa5 };
static const size_t kAddresses = (size_t)1 << 40;

typedef struct {
  uint32_t pages, before; /* of the block, and bytes between its first page and its first byte */
  uint64_t size;
} Block;

static char* region;
static Block* blocks; /* by the first page */
static size_t next_page = 1;
static uint32_t count;

__attribute__((constructor)) static void reserve(void) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* table = mmap(NULL, kAddresses / kPage * sizeof(Block), PROT_READ | PROT_WRITE, flags, -1, 0);
  void* found = mmap(NULL, kAddresses, PROT_NONE, flags, -1, 0);
  if (table == MAP_FAILED || found == MAP_FAILED) abort();
  blocks = table, region = found;
}

static void check(const char* from, const char* to) {
  for (; from < to; from++)
    if ((unsigned char)*from != kFill) {
      fputs("guard_malloc: something was written beside a block\n", stderr);
      abort();
    }
}

static void* take(size_t alignment, size_t size) {
  const size_t pages = (size + kPage - 1) / kPage + (size == 0);
  const size_t first = __atomic_fetch_add(&next_page, pages + 1, __ATOMIC_RELAXED);
  if ((first + pages + 1) * kPage > kAddresses || alignment > kPage) return NULL;
  char *page = region + first * kPage, *data = page;
  if (mprotect(page, pages * kPage, PROT_READ | PROT_WRITE)) return NULL;
  memset(page, kFill, pages * kPage);
  const uint32_t turn = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED) * 2654435761u; /* no pattern of calls */
  if (turn >> 31) data += (pages * kPage - size) / alignment * alignment;
  blocks[first] = (Block){(uint32_t)pages, (uint32_t)(data - page), size};
  return data;
}

static int is_ours(const void* p) {
  return region && (uintptr_t)p >= (uintptr_t)region && (uintptr_t)p < (uintptr_t)region + kAddresses;
}

static Block* block_of(const void* p) { return &blocks[((uintptr_t)p - (uintptr_t)region) / kPage]; }

int posix_memalign(void** p, size_t alignment, size_t size) {
  void* data = region ? take(alignment, size) : NULL;
  if (data) *p = data;
  return data ? 0 : ENOMEM;
}

void* aligned_alloc(size_t alignment, size_t size) {
  void* data = NULL;
  posix_memalign(&data, alignment, size);
  return data;
}

void free(void* p) {
  if (!is_ours(p)) {
    __libc_free(p);
    return;
  }
  const Block b = *block_of(p);
  char* page = (char*)p - b.before;
  check(page, p);
  check((char*)p + b.size, page + (size_t)b.pages * kPage);
  madvise(page, (size_t)b.pages * kPage, MADV_DONTNEED);
  mprotect(page, (size_t)b.pages * kPage, PROT_NONE);
}

void* realloc(void* p, size_t size) {
  if (!is_ours(p)) return __libc_realloc(p, size);
  const size_t had = block_of(p)->size;
  void* moved = malloc(size);
  if (moved) memcpy(moved, p, had < size ? had : size), free(p);
  return moved;
}
