// Keywords, predefined macros and numeric constants of the Metal language.
#pragma once

#define __METAL__ 1
#define __METAL_MACOS__ 1
#define __HAVE_BFLOAT__ 1
#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 1
#define __METAL_PRECISE_MATH__ 2

// `constant` is an OpenCL keyword with Metal's meaning; the other three have other names.
#define device __global
#define threadgroup __local
#define thread __private
#define kernel  // entry points are plain functions here

// OpenCL keywords and types that are ordinary names in Metal, and a C++ keyword it does without.
#define local __msl_name_local
#define global __msl_name_global
#define generic __msl_name_generic
#define pipe __msl_name_pipe
#define atomic_int __msl_atomic_int
#define atomic_uint __msl_atomic_uint
#define atomic_float __msl_atomic_float
#define atomic_ulong __msl_atomic_ulong
#define double __msl_error_double_is_not_supported_in_Metal

#define METAL_FUNC inline __attribute__((__always_inline__))
#define METAL_CONST constant

#define INFINITY (__builtin_inff())
#define HUGE_VALF (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define MAXFLOAT 3.40282347e+38f
#define FLT_MAX 3.40282347e+38f
#define FLT_MIN 1.17549435e-38f
#define FLT_EPSILON 1.19209290e-7f
#define HALF_MAX 65504.0h
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u

#define M_PI_F 3.14159265358979323846f
#define M_PI_H 3.14159265h
#define M_SQRT2_F 1.41421356237309504880f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG2E_F 1.44269504088896340736f
