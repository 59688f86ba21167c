// <metal_integer>
#pragma once

namespace metal {
#define MSL_INTEGER(T)                                                             \
  METAL_FUNC constexpr T max(T a, T b) { return a > b ? a : b; }                   \
  METAL_FUNC constexpr T min(T a, T b) { return a < b ? a : b; }                   \
  METAL_FUNC constexpr T clamp(T x, T a, T b) { return x < a ? a : x > b ? b : x; } \
  METAL_FUNC T max3(T a, T b, T c) { return max(a, max(b, c)); }                   \
  METAL_FUNC T min3(T a, T b, T c) { return min(a, min(b, c)); }
MSL_INTEGER(char)
MSL_INTEGER(signed char)
MSL_INTEGER(uchar)
MSL_INTEGER(short)
MSL_INTEGER(ushort)
MSL_INTEGER(int)
MSL_INTEGER(uint)
MSL_INTEGER(long)
MSL_INTEGER(ulong)
#undef MSL_INTEGER

#define MSL_SIGNED(T) METAL_FUNC constexpr T abs(T x) { return x < 0 ? (T)-x : x; }
MSL_SIGNED(char)
MSL_SIGNED(short)
MSL_SIGNED(int)
MSL_SIGNED(long)
#undef MSL_SIGNED

#define MSL_UNSIGNED(T)                                                                        \
  METAL_FUNC constexpr T abs(T x) { return x; }                                                \
  METAL_FUNC T popcount(T x) { return (T)__builtin_popcountl((ulong)x); }                      \
  METAL_FUNC T ctz(T x) { return (T)(x ? __builtin_ctzl((ulong)x) : 8 * sizeof(T)); }          \
  METAL_FUNC T clz(T x) {                                                                      \
    return (T)(x ? __builtin_clzl((ulong)x) - (64 - 8 * (int)sizeof(T)) : 8 * (int)sizeof(T)); \
  }
MSL_UNSIGNED(uchar)
MSL_UNSIGNED(ushort)
MSL_UNSIGNED(uint)
MSL_UNSIGNED(ulong)
#undef MSL_UNSIGNED

METAL_FUNC int popcount(int x) { return __builtin_popcount((uint)x); }
METAL_FUNC int clz(int x) { return x ? __builtin_clz((uint)x) : 32; }
METAL_FUNC int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
METAL_FUNC uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
METAL_FUNC int mul24(int a, int b) { return a * b; }
METAL_FUNC int mad24(int a, int b, int c) { return a * b + c; }
METAL_FUNC uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
}  // namespace metal
