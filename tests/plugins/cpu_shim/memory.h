// What a kernel may load, and the shared memory of a block.
#pragma once
#include <link.h>

#include "block.h"

namespace cpu {

struct Buffer {
  const char *first, *end;

  bool holds(const void* at, size_t bytes) const { return (const char*)at >= first && (const char*)at + bytes <= end; }
};

static Buffer inputs[4];
static Buffer shared;

// Faults unless the bytes are of one input, aligned to their number.
static inline void check_load(const void* from, size_t bytes) {
  bool inside = false;
  for (const Buffer& input : inputs) inside |= input.holds(from, bytes);
  if (!inside) fail("a load of %zu bytes outside of every input", bytes);
  if ((uintptr_t)from % bytes) fail("a load of %zu bytes that is not aligned", bytes);
}

// This library's block of thread-local storage, which holds __shared__ and nothing else but `found_by`.
static thread_local char found_by;
static int find_shared(dl_phdr_info* library, size_t, void*) {
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    if (library->dlpi_phdr[i].p_type != PT_TLS || !library->dlpi_tls_data) continue;
    const char* first = (const char*)library->dlpi_tls_data;
    const Buffer storage = {first, first + library->dlpi_phdr[i].p_memsz};
    if (storage.holds(&found_by, 1)) shared = storage;
  }
  return 0;
}

// Anything read before it is written is NaN.
static void poison_shared() {
  found_by = 0;  // storage exists from the first access on
  if (!shared.first) dl_iterate_phdr(find_shared, nullptr);
  memset((char*)shared.first, POISON, shared.end - shared.first);
}

// ---- copies from global to shared memory (cp.async)

struct Copies {  // of one thread
  struct {
    void* to;
    const void* from;
    int group;
  } pending[256];
  int count, group;  // the group that is not committed yet
};
static Copies copies[MAX_THREADS];
static bool copies_land_late;

static void start_copies() {
  for (unsigned i = 0; i < blockDim.x; ++i) copies[i].count = copies[i].group = 0;
  copies_land_late = random_below(4) != 0;
}

// Late copies land when they are waited for; until then what they write is no one's to read, and poisoned.
static inline void copy(void* to, const void* from, size_t bytes) {
  check_load(from, bytes);
  if (!shared.holds(to, bytes)) fail("a copy to outside of shared memory");
  if ((uintptr_t)to % bytes) fail("a copy to shared memory that is not aligned");
  if (!copies_land_late) {
    memcpy(to, from, bytes);
    return;
  }
  memset(to, POISON, bytes);
  Copies& mine = copies[threadIdx.x];
  if (mine.count == sizeof mine.pending / sizeof *mine.pending) fail("more copies than the shim has room for");
  mine.pending[mine.count++] = {to, from, mine.group};
}

static inline void land_copies(int pending_groups, size_t bytes) {
  Copies& mine = copies[threadIdx.x];
  int kept = 0;
  for (int i = 0; i < mine.count; ++i)
    if (mine.pending[i].group < mine.group - pending_groups)
      memcpy(mine.pending[i].to, mine.pending[i].from, bytes);
    else
      mine.pending[kept++] = mine.pending[i];
  mine.count = kept;
}

}  // namespace cpu

// ---- plain accesses, which the compiler watches (-fsanitize=alignment,bounds) and reports here

struct Watched {  // how the compiler's report begins
  const char* file;
  unsigned line, column;
};
extern "C" void __ubsan_handle_type_mismatch_v1(const Watched* at, const void*) {
  cpu::fail("%s:%u: an access that is not aligned", at->file, at->line);
}
extern "C" void __ubsan_handle_out_of_bounds(const Watched* at, const void*) {
  cpu::fail("%s:%u: an index outside of its array", at->file, at->line);
}
