// <metal_math>: the same functions in metal, metal::fast and metal::precise.
#pragma once

namespace metal {
inline float __rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float __fract(float x) { return x - __builtin_floorf(x); }
inline float __sinpi(float x) { return __builtin_sinf(M_PI_F * x); }
inline float __cospi(float x) { return __builtin_cosf(M_PI_F * x); }
inline float __tanpi(float x) { return __builtin_tanf(M_PI_F * x); }
inline float __sign(float x) { return x > 0 ? 1.0f : (x < 0 ? -1.0f : 0.0f); }
inline float __saturate(float x) { return __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f); }

#define MSL_UNARY(NAME, IMPL)                                         \
  METAL_FUNC float NAME(float x) { return IMPL(x); }                  \
  METAL_FUNC half NAME(half x) { return (half)IMPL((float)x); }       \
  template <int N> METAL_FUNC vec<float, N> NAME(vec<float, N> x) {   \
    vec<float, N> r;                                                  \
    for (int i = 0; i < N; i++) r[i] = IMPL(x[i]);                    \
    return r;                                                         \
  }                                                                   \
  template <int N> METAL_FUNC vec<half, N> NAME(vec<half, N> x) {     \
    vec<half, N> r;                                                   \
    for (int i = 0; i < N; i++) r[i] = (half)IMPL((float)x[i]);       \
    return r;                                                         \
  }

#define MSL_BINARY(NAME, IMPL)                                                       \
  METAL_FUNC float NAME(float x, float y) { return IMPL(x, y); }                     \
  METAL_FUNC half NAME(half x, half y) { return (half)IMPL((float)x, (float)y); }    \
  template <int N> METAL_FUNC vec<float, N> NAME(vec<float, N> x, vec<float, N> y) { \
    vec<float, N> r;                                                                 \
    for (int i = 0; i < N; i++) r[i] = IMPL(x[i], y[i]);                             \
    return r;                                                                        \
  }                                                                                  \
  template <int N> METAL_FUNC vec<half, N> NAME(vec<half, N> x, vec<half, N> y) {    \
    vec<half, N> r;                                                                  \
    for (int i = 0; i < N; i++) r[i] = (half)IMPL((float)x[i], (float)y[i]);         \
    return r;                                                                        \
  }                                                                                  \
  template <int N> METAL_FUNC vec<float, N> NAME(vec<float, N> x, float y) {         \
    vec<float, N> r;                                                                 \
    for (int i = 0; i < N; i++) r[i] = IMPL(x[i], y);                                \
    return r;                                                                        \
  }

#include "msl/math_functions.inc"
namespace fast {
#include "msl/math_functions.inc"
}
namespace precise {
#include "msl/math_functions.inc"
}
#undef MSL_UNARY
#undef MSL_BINARY
}  // namespace metal
