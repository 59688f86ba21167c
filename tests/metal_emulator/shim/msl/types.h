// Scalars, vectors (Apple's own are ext_vector_type as well) and packed vectors.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef ulong uintptr_t;
typedef long intptr_t;
typedef __bf16 bfloat;

#define MSL_VECTORS(T)                                 \
  typedef T T##2 __attribute__((ext_vector_type(2)));  \
  typedef T T##3 __attribute__((ext_vector_type(3)));  \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(float)
MSL_VECTORS(bfloat)
#undef MSL_VECTORS

#define MSL_PACKED_VECTORS(T)                                            \
  struct packed_##T##2 { T x, y; };                                      \
  struct packed_##T##4 { T x, y, z, w; };                                \
  struct packed_##T##3 {                                                 \
    T x, y, z;                                                           \
    packed_##T##3() = default;                                           \
    packed_##T##3(T##3 v) : x(v.x), y(v.y), z(v.z) {}                    \
    operator T##3() const { return T##3{x, y, z}; }                      \
  };
MSL_PACKED_VECTORS(char)
MSL_PACKED_VECTORS(uchar)
MSL_PACKED_VECTORS(short)
MSL_PACKED_VECTORS(ushort)
MSL_PACKED_VECTORS(int)
MSL_PACKED_VECTORS(uint)
MSL_PACKED_VECTORS(half)
MSL_PACKED_VECTORS(float)
#undef MSL_PACKED_VECTORS
