// <metal_limits>
#pragma once

namespace metal {
template <class T> struct numeric_limits {};

#define MSL_INTEGER_LIMITS(T, MIN, MAX, DIGITS)                             \
  template <> struct numeric_limits<T> {                                    \
    static constexpr constant bool is_specialized = true, is_integer = true; \
    static constexpr constant int digits = DIGITS;                          \
    static constexpr T min() { return MIN; }                                \
    static constexpr T max() { return MAX; }                                \
    static constexpr T lowest() { return MIN; }                             \
    static constexpr T infinity() { return 0; }                             \
  };
MSL_INTEGER_LIMITS(bool, false, true, 1)
MSL_INTEGER_LIMITS(char, -128, 127, 7)
MSL_INTEGER_LIMITS(signed char, -128, 127, 7)
MSL_INTEGER_LIMITS(uchar, 0, 255, 8)
MSL_INTEGER_LIMITS(short, -32768, 32767, 15)
MSL_INTEGER_LIMITS(ushort, 0, 65535, 16)
MSL_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647, 31)
MSL_INTEGER_LIMITS(uint, 0, 4294967295u, 32)
MSL_INTEGER_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L, 63)
MSL_INTEGER_LIMITS(ulong, 0, ~0ul, 64)
#undef MSL_INTEGER_LIMITS

#define MSL_FLOAT_LIMITS(T, MIN, MAX, EPSILON)                               \
  template <> struct numeric_limits<T> {                                     \
    static constexpr constant bool is_specialized = true, is_integer = false; \
    static constexpr T min() { return (T)MIN; }                              \
    static constexpr T max() { return (T)MAX; }                              \
    static constexpr T lowest() { return -(T)MAX; }                          \
    static constexpr T epsilon() { return (T)EPSILON; }                      \
    static constexpr T infinity() { return (T)__builtin_inff(); }            \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); }         \
  };
MSL_FLOAT_LIMITS(float, 1.17549435e-38f, 3.40282347e+38f, 1.1920929e-7f)
MSL_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 0.0009765625f)
MSL_FLOAT_LIMITS(bfloat, 1.17549435e-38f, 3.38953139e+38f, 0.0078125f)
#undef MSL_FLOAT_LIMITS
}  // namespace metal
