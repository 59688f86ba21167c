// Vector constructors. clang has no `float4(a, b, c, d)` outside HLSL: rewrites.py turns such calls,
// and static_casts to vectors, into __construct<float4>::make(a, b, c, d).
#pragma once

namespace metal {
template <class V>
struct __construct {
  static constexpr constant int N = __shape<V>::size;
  using E = __element<V>;

  static inline V make() { return (V)(E)0; }

  template <class... A>
  static inline V make(A... a) {
    if constexpr (sizeof...(A) == 1) {
      return from_one(a...);
    } else {
      static_assert((__shape<A>::size + ...) == N, "vector constructor: component count mismatch");
      V result;
      fill(result, 0, a...);
      return result;
    }
  }

 private:
  template <class A>
  static inline V from_one(A a) {
    if constexpr (__shape<A>::is_vector) {
      static_assert(__shape<A>::size >= N, "vector constructor: too few components");
      V result;
      for (int i = 0; i < N; i++) result[i] = (E)a[i];
      return result;
    } else if constexpr (__is_class(A)) {
      return (V)a;
    } else {
      return (V)(E)a;
    }
  }

  template <class A>
  static inline void put(thread V& result, int at, A a) {
    if constexpr (__shape<A>::is_vector) {
      for (int i = 0; i < __shape<A>::size; i++) result[at + i] = (E)a[i];
    } else {
      result[at] = (E)a;
    }
  }

  template <class A, class... B>
  static inline void fill(thread V& result, int at, A a, B... b) {
    put(result, at, a);
    if constexpr (sizeof...(B) > 0) fill(result, at + __shape<A>::size, b...);
  }
};
template <class To, class From> inline To __convert(From x) { return __construct<To>::make(x); }
}  // namespace metal

template <class To, class From>
METAL_FUNC constexpr To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type: size mismatch");
  return __builtin_bit_cast(To, x);
}
namespace metal {
using ::as_type;
}
