// <metal_atomic>
#pragma once

namespace metal {
enum memory_order { memory_order_relaxed, memory_order_seq_cst = 5 };
enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device
};

template <class T>
struct atomic {
  static_assert(is_same_v<T, int> || is_same_v<T, uint> || is_same_v<T, float> ||
                    is_same_v<T, bool> || is_same_v<T, ulong>,
                "metal::atomic<T>: T must be int, uint, bool, float or ulong");
  T __value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

// Codes 0, 3 and 4 are those of simdgroup.h; bool and ulong exist only here.
template <class T>
constant constexpr uint __atomic_code = is_same_v<T, bool>    ? 9
                                        : is_same_v<T, ulong> ? 10
                                                              : __type_code<T>;
template <class T> METAL_FUNC ulong __to_bits(T x) {
  if constexpr (sizeof(T) == 4) return __builtin_bit_cast(uint, x);
  else return (ulong)x;
}
template <class T> METAL_FUNC T __from_bits(ulong bits) {
  if constexpr (sizeof(T) == 4) return __builtin_bit_cast(T, (uint)bits);
  else return (T)bits;
}

template <class T> using __value_of = typename remove_const<T>::type;  // takes no part in deduction

#define MSL_FETCH(NAME, OP, SPACE)                                                             \
  template <class T>                                                                           \
  METAL_FUNC T NAME(volatile SPACE atomic<T>* p, __value_of<T> v, memory_order) {              \
    return __from_bits<T>(__msl_atomic((ulong)p, OP, __atomic_code<T>, __to_bits(v), 0));      \
  }
#define MSL_ATOMICS(SPACE)                                                                     \
  MSL_FETCH(atomic_exchange_explicit, 1, SPACE)                                                \
  MSL_FETCH(atomic_fetch_add_explicit, 2, SPACE)                                               \
  MSL_FETCH(atomic_fetch_sub_explicit, 3, SPACE)                                               \
  MSL_FETCH(atomic_fetch_min_explicit, 4, SPACE)                                               \
  MSL_FETCH(atomic_fetch_max_explicit, 5, SPACE)                                               \
  MSL_FETCH(atomic_fetch_and_explicit, 6, SPACE)                                               \
  MSL_FETCH(atomic_fetch_or_explicit, 7, SPACE)                                                \
  MSL_FETCH(atomic_fetch_xor_explicit, 8, SPACE)                                               \
  template <class T>                                                                           \
  METAL_FUNC T atomic_load_explicit(const volatile SPACE atomic<T>* p, memory_order) {         \
    return __from_bits<T>(__msl_atomic((ulong)p, 0, __atomic_code<T>, 0, 0));                  \
  }                                                                                            \
  template <class T>                                                                           \
  METAL_FUNC void atomic_store_explicit(volatile SPACE atomic<T>* p, __value_of<T> v, memory_order) {\
    __msl_atomic((ulong)p, 1, __atomic_code<T>, __to_bits(v), 0);                              \
  }                                                                                            \
  template <class T>                                                                           \
  METAL_FUNC bool atomic_compare_exchange_weak_explicit(                                       \
      volatile SPACE atomic<T>* p, thread T* expected, __value_of<T> v,                        \
      memory_order, memory_order) {                                                            \
    ulong wanted = __to_bits(*expected);                                                       \
    ulong found = __msl_atomic((ulong)p, 9, __atomic_code<T>, __to_bits(v), wanted);           \
    *expected = __from_bits<T>(found);                                                         \
    return found == wanted;                                                                    \
  }
MSL_ATOMICS(device)
MSL_ATOMICS(threadgroup)
#undef MSL_ATOMICS
#undef MSL_FETCH

METAL_FUNC void atomic_thread_fence(mem_flags flags, memory_order,
                                    thread_scope = thread_scope_device) {
  __msl_fence((uint)flags);
}
}  // namespace metal
