/* Memory that runs out on demand: preloaded, it fails allocations from a chosen one on, as many as asked for. */
#define _GNU_SOURCE
#include <stdlib.h>
#ifndef __GLIBC__
#error "needs glibc, whose own allocator has another name" /* test_out_of_memory.py looks for these words */
#else
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdint.h>
#include <stddef.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static _Thread_local long left;   /* allocations of this thread until the first that fails; 0: none will */
static _Thread_local long burst;  /* how many fail then */
static _Thread_local long failed;

void fail_from(long first, long how_many) {
  failed = 0;
  burst = how_many;
  left = first;
}

long stop_failing(void) {
  left = burst = 0;
  return failed;
}

/* NumPy and pybind11 take no notice when a small object of their own cannot be had, and the process crashes: those are
   always granted here. Whose an allocation is, is told by the callers that lie in the code named to spare(), up to the
   interpreter's loop. */
static uintptr_t loop;
void set_interpreter(void* begin) { loop = (uintptr_t)begin; }

static uintptr_t spared[8];
static int spared_count;
enum { small = 512, depth = 24, loop_bytes = 1 << 15 };

void spare(uintptr_t begin, uintptr_t end) {
  spared[spared_count++] = begin;
  spared[spared_count++] = end;
  void* frames[depth];
  backtrace(frames, depth); /* the first call allocates */
}

static int is_spared(size_t size) {
  if (size >= small) return 0;
  void* frames[depth];
  const int count = backtrace(frames, depth);
  for (int i = 0; i < count; ++i) {
    const uintptr_t at = (uintptr_t)frames[i];
    if (at >= loop && at < loop + loop_bytes) return 0;
    for (int k = 0; k < spared_count; k += 2) {
      if (at >= spared[k] && at < spared[k + 1]) return 1;
    }
  }
  return 0;
}

static int fails(size_t size) {
  if (left == 0) return 0;
  if (left > 1) {
    --left;
    return 0;
  }
  if (is_spared(size)) return 0; /* the next one, then */
  if (burst-- <= 0) {
    left = 0;
    return 0;
  }
  ++failed;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return fails(count * size) ? NULL : __libc_calloc(count, size); }
void* realloc(void* memory, size_t size) { return fails(size) ? NULL : __libc_realloc(memory, size); }
void* memalign(size_t border, size_t size) { return fails(size) ? NULL : __libc_memalign(border, size); }
void* aligned_alloc(size_t border, size_t size) { return fails(size) ? NULL : __libc_memalign(border, size); }
int posix_memalign(void** memory, size_t border, size_t size) {
  *memory = fails(size) ? NULL : __libc_memalign(border, size);
  return *memory == NULL ? ENOMEM : 0;
}

/* Threads that cannot be made. */
static int no_threads;
void refuse_threads(int refuse) { no_threads = refuse; }
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  if (no_threads) return EAGAIN;
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) =
      (int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*))dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, attributes, start, argument);
}
#endif
