// Functions of whole vectors: <metal_common>, <metal_geometric>, <metal_relational>.
#pragma once

namespace metal {
#define MSL_ELEMENTWISE(EXPRESSION)                     \
  {                                                     \
    vec<T, N> r;                                        \
    for (int i = 0; i < N; i++) r[i] = EXPRESSION;      \
    return r;                                           \
  }
template <class T, int N>
METAL_FUNC vec<T, N> max(vec<T, N> a, vec<T, N> b) MSL_ELEMENTWISE(max(a[i], b[i]))
template <class T, int N>
METAL_FUNC vec<T, N> min(vec<T, N> a, vec<T, N> b) MSL_ELEMENTWISE(min(a[i], b[i]))
template <class T, int N>
METAL_FUNC vec<T, N> max(vec<T, N> a, T b) MSL_ELEMENTWISE(max(a[i], b))
template <class T, int N>
METAL_FUNC vec<T, N> min(vec<T, N> a, T b) MSL_ELEMENTWISE(min(a[i], b))
template <class T, int N>
METAL_FUNC vec<T, N> abs(vec<T, N> a) MSL_ELEMENTWISE(abs(a[i]))
template <class T, int N>
METAL_FUNC vec<T, N> clamp(vec<T, N> a, vec<T, N> b, vec<T, N> c)
    MSL_ELEMENTWISE(clamp(a[i], b[i], c[i]))
template <class T, int N>
METAL_FUNC vec<T, N> clamp(vec<T, N> a, T b, T c) MSL_ELEMENTWISE(clamp(a[i], b, c))
template <class T, class M, int N>
METAL_FUNC vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<M, N> c)
    MSL_ELEMENTWISE(c[i] ? b[i] : a[i])
#undef MSL_ELEMENTWISE
template <class T> METAL_FUNC T select(T a, T b, bool c) { return c ? b : a; }

template <class T, int N>
METAL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
  T r = (T)(a[0] * b[0]);
  for (int i = 1; i < N; i++) r = (T)(r + a[i] * b[i]);
  return r;
}
template <class T, int N> METAL_FUNC T length_squared(vec<T, N> a) { return dot(a, a); }
template <class T, int N> METAL_FUNC T length(vec<T, N> a) {
  return (T)__builtin_sqrtf((float)dot(a, a));
}

template <class M, int N>
METAL_FUNC bool all(vec<M, N> v) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && v[i];
  return r;
}
template <class M, int N>
METAL_FUNC bool any(vec<M, N> v) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || v[i];
  return r;
}

template <class T> METAL_FUNC T mix(T a, T b, T t) { return a + (b - a) * t; }
METAL_FUNC float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
}  // namespace metal
