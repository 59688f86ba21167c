// <metal_simdgroup_matrix>: 8x8 fragments, two elements a lane in the layout that MLX relies on.
#pragma once

namespace metal {
struct __fragment_place {
  ulong row, column;  // of this lane's first element; the second lies one column on
  __fragment_place() {
    uint lane = __msl_lane(), quad = lane / 4;
    row = (quad & 4) + (lane / 2) % 4;
    column = (quad & 2) * 2 + (lane % 2) * 2;
  }
};

template <class T, int Columns, int Rows = Columns>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "simdgroup_matrix: only 8x8 is supported");
  static_assert(is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>,
                "simdgroup_matrix element must be half, bfloat or float");
  typedef vec<T, 2> storage_type;
  vec<T, 2> __elements;

  simdgroup_matrix() thread = default;
  explicit simdgroup_matrix(T diagonal) thread {
    __fragment_place at;
    __elements[0] = at.row == at.column ? diagonal : (T)0;
    __elements[1] = at.row == at.column + 1 ? diagonal : (T)0;
  }
  thread vec<T, 2>& thread_elements() thread { return __elements; }
  const thread vec<T, 2>& thread_elements() const thread { return __elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Columns, int Rows = Columns>
METAL_FUNC simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> m;
  m.__elements[0] = value;
  m.__elements[1] = value;
  return m;
}

METAL_FUNC ulong __fragment_offset(int element, ulong stride, ulong2 origin, bool transposed) {
  __fragment_place at;
  ulong column = at.column + (ulong)element;
  ulong y = transposed ? column : at.row, x = transposed ? at.row : column;
  return (origin.y + y) * stride + origin.x + x;
}
#define MSL_LOAD_STORE(SPACE)                                                                 \
  template <class T>                                                                          \
  METAL_FUNC void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m, const SPACE T* source,  \
                                 ulong stride = 8, ulong2 origin = ulong2(0),                 \
                                 bool transposed = false, MSL_SITE) {                         \
    __msl_barrier(0, 2, __site);                                                              \
    for (int i = 0; i < 2; i++)                                                               \
      m.__elements[i] = source[__fragment_offset(i, stride, origin, transposed)];             \
  }                                                                                           \
  template <class T>                                                                          \
  METAL_FUNC void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T* target,               \
                                  ulong stride = 8, ulong2 origin = ulong2(0),                \
                                  bool transposed = false, MSL_SITE) {                        \
    __msl_barrier(0, 2, __site);                                                              \
    for (int i = 0; i < 2; i++)                                                               \
      target[__fragment_offset(i, stride, origin, transposed)] = m.__elements[i];             \
  }
MSL_LOAD_STORE(device)
MSL_LOAD_STORE(threadgroup)
#undef MSL_LOAD_STORE

template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d,
                                              simdgroup_matrix<A, 8, 8> a,
                                              simdgroup_matrix<B, 8, 8> b,
                                              simdgroup_matrix<C, 8, 8> c, MSL_SITE) {
  static_assert(is_same_v<A, B>, "simdgroup_multiply_accumulate: left and right operands must "
                                 "have the same element type");
  vec<D, 2> result;
  __msl_matrix_multiply(&result, &a.__elements, &b.__elements, &c.__elements,
                        __type_code<D> | __type_code<A> << 4 | __type_code<B> << 8 |
                            __type_code<C> << 12,
                        __site);
  d.__elements = result;
}
template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                   simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b,
                                   MSL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>((D)0), __site);
}
}  // namespace metal
