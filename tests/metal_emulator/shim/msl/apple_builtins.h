// Builtins of Apple's compiler that MLX's bf16_math.h and complex.h call by name.
#pragma once

#define MSL_MATH1(NAME, IMPL) \
  METAL_FUNC float __metal_##NAME(float x, int) { return IMPL(x); }
#define MSL_MATH2(NAME, IMPL) \
  METAL_FUNC float __metal_##NAME(float x, float y, int) { return IMPL(x, y); }
MSL_MATH1(fabs, __builtin_fabsf)
MSL_MATH1(acos, __builtin_acosf)
MSL_MATH1(acosh, __builtin_acoshf)
MSL_MATH1(asin, __builtin_asinf)
MSL_MATH1(asinh, __builtin_asinhf)
MSL_MATH1(atan, __builtin_atanf)
MSL_MATH1(atanh, __builtin_atanhf)
MSL_MATH1(ceil, __builtin_ceilf)
MSL_MATH1(cos, __builtin_cosf)
MSL_MATH1(cosh, __builtin_coshf)
MSL_MATH1(cospi, metal::__cospi)
MSL_MATH1(exp, __builtin_expf)
MSL_MATH1(exp10, exp10f)
MSL_MATH1(exp2, __builtin_exp2f)
MSL_MATH1(floor, __builtin_floorf)
MSL_MATH1(fract, metal::__fract)
MSL_MATH1(log, __builtin_logf)
MSL_MATH1(log10, __builtin_log10f)
MSL_MATH1(log2, __builtin_log2f)
MSL_MATH1(rint, __builtin_rintf)
MSL_MATH1(round, __builtin_roundf)
MSL_MATH1(rsqrt, metal::__rsqrt)
MSL_MATH1(sin, __builtin_sinf)
MSL_MATH1(sinh, __builtin_sinhf)
MSL_MATH1(sinpi, metal::__sinpi)
MSL_MATH1(sqrt, __builtin_sqrtf)
MSL_MATH1(tan, __builtin_tanf)
MSL_MATH1(tanh, __builtin_tanhf)
MSL_MATH1(tanpi, metal::__tanpi)
MSL_MATH1(trunc, __builtin_truncf)
MSL_MATH2(atan2, __builtin_atan2f)
MSL_MATH2(fmax, __builtin_fmaxf)
MSL_MATH2(fmin, __builtin_fminf)
MSL_MATH2(fmod, __builtin_fmodf)
MSL_MATH2(pow, __builtin_powf)
MSL_MATH2(powr, __builtin_powf)
#undef MSL_MATH1
#undef MSL_MATH2

METAL_FUNC float __metal_divide(float a, float b, int) { return a / b; }
METAL_FUNC float __metal_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
METAL_FUNC float __metal_nextafter(float a, float b) { return nextafterf(a, b); }
METAL_FUNC float __metal_ldexp(float x, int k, int) { return __builtin_ldexpf(x, k); }
METAL_FUNC float __metal_frexp(float x, thread int* e) { return frexpf(x, e); }
METAL_FUNC float __metal_fmax3(float a, float b, float c, int) { return metal::max3(a, b, c); }
METAL_FUNC float __metal_fmin3(float a, float b, float c, int) { return metal::min3(a, b, c); }
METAL_FUNC float __metal_fmedian3(float a, float b, float c, int) {
  return metal::max(metal::min(a, b), metal::min(metal::max(a, b), c));
}

#define MSL_SHUFFLE(NAME)                                          \
  template <class T>                                               \
  METAL_FUNC T __metal_##NAME(T x, ushort k, MSL_SITE) {           \
    return metal::NAME(x, k, __site);                              \
  }
MSL_SHUFFLE(simd_broadcast)
MSL_SHUFFLE(simd_shuffle)
MSL_SHUFFLE(simd_shuffle_down)
MSL_SHUFFLE(simd_shuffle_up)
MSL_SHUFFLE(simd_shuffle_xor)
MSL_SHUFFLE(simd_shuffle_rotate_down)
MSL_SHUFFLE(simd_shuffle_rotate_up)
#undef MSL_SHUFFLE
template <class T>
METAL_FUNC T __metal_simd_shuffle_and_fill_down(T x, T fill, ushort delta, ushort) {
  return metal::simd_shuffle_and_fill_down(x, fill, delta);
}
template <class T>
METAL_FUNC T __metal_simd_shuffle_and_fill_up(T x, T fill, ushort delta, ushort) {
  return metal::simd_shuffle_and_fill_up(x, fill, delta);
}
METAL_FUNC ushort __metal_get_simdgroup_size(ushort) { return 32; }

#define MSL_REDUCE(NAME) \
  template <class T> METAL_FUNC T __metal_##NAME(T x, MSL_SITE) { return metal::NAME(x, __site); }
MSL_REDUCE(simd_max)
MSL_REDUCE(simd_min)
MSL_REDUCE(simd_sum)
MSL_REDUCE(simd_product)
MSL_REDUCE(simd_prefix_exclusive_product)
MSL_REDUCE(simd_prefix_exclusive_sum)
MSL_REDUCE(simd_prefix_inclusive_product)
MSL_REDUCE(simd_prefix_inclusive_sum)
#undef MSL_REDUCE
METAL_FUNC float __metal_simd_xor(float x) { return x; }
