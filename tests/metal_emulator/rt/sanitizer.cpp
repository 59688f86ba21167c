// The functions that clang's instrumentation calls: -fsanitize=thread before every memory access
// (its own runtime would look for races between CPU threads), -fsanitize=undefined on a fault.
#include "runtime.h"

#include <cstring>

#define ACCESSES(N)                                                                      \
  EXPORT void __tsan_read##N(void* p) { access_memory((u64)p, N, false, N, CALLER_PC); } \
  EXPORT void __tsan_write##N(void* p) { access_memory((u64)p, N, true, N, CALLER_PC); } \
  EXPORT void __tsan_unaligned_read##N(void* p) {                                        \
    access_memory((u64)p, N, false, 1, CALLER_PC);                                       \
  }                                                                                      \
  EXPORT void __tsan_unaligned_write##N(void* p) {                                       \
    access_memory((u64)p, N, true, 1, CALLER_PC);                                        \
  }                                                                                      \
  EXPORT void __tsan_read_write##N(void* p) {                                            \
    access_memory((u64)p, N, false, N, CALLER_PC);                                       \
    access_memory((u64)p, N, true, N, CALLER_PC);                                        \
  }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit() {}
EXPORT void* __tsan_memcpy(void* to, const void* from, size_t n) {
  access_memory((u64)from, (u32)n, false, 1, CALLER_PC);
  access_memory((u64)to, (u32)n, true, 1, CALLER_PC);
  return memcpy(to, from, n);
}
EXPORT void* __tsan_memmove(void* to, const void* from, size_t n) {
  access_memory((u64)from, (u32)n, false, 1, CALLER_PC);
  access_memory((u64)to, (u32)n, true, 1, CALLER_PC);
  return memmove(to, from, n);
}
EXPORT void* __tsan_memset(void* to, int value, size_t n) {
  access_memory((u64)to, (u32)n, true, 1, CALLER_PC);
  return memset(to, value, n);
}

// Before a copy: the alignment that its types promise (instrument.py).
EXPORT void __msl_aligned(void* p, u32 alignment) { check_alignment((u64)p, alignment, CALLER_PC); }

EXPORT void __msl_bad_index(u64 index, u64 size) {
  if (current)
    report("array-out-of-bounds",
           format("index %lld of an array of %llu", (long long)index, (unsigned long long)size),
           {CALLER_PC});
  abandon_launch();
}

struct SourceLocation {
  const char* file;
  u32 line, column;
};

static void undefined(const SourceLocation* at, const char* kind, const char* what, bool fatal) {
  if (!current) return;
  report(kind, what, {0, 0, format("%s:%u:%u", at->file, at->line, at->column)});
  if (fatal) abandon_launch();
}
#define UNDEFINED(NAME, KIND, WHAT, FATAL)                           \
  EXPORT void __ubsan_handle_##NAME(const SourceLocation* at, ...) { \
    undefined(at, KIND, WHAT, FATAL);                                \
  }
UNDEFINED(divrem_overflow, "division-by-zero", "integer division by zero", true)
UNDEFINED(add_overflow, "signed-overflow", "signed addition overflows", false)
UNDEFINED(sub_overflow, "signed-overflow", "signed subtraction overflows", false)
UNDEFINED(mul_overflow, "signed-overflow", "signed multiplication overflows", false)
UNDEFINED(negate_overflow, "signed-overflow", "signed negation overflows", false)
