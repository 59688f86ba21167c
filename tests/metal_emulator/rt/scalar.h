// Element types by the codes of shim/msl/simdgroup.h (bool and ulong: atomics only).
#pragma once

#include "runtime.h"

enum Type : u32 { F32, F16, BF16, I32, U32, I16, U16, I8, U8, BOOL, U64 };

inline bool is_float(u32 type) { return type <= BF16; }

inline double load_number(u32 type, const void* p, u32 i) {
  switch (type) {
    case F32: return ((const float*)p)[i];
    case F16: return ((const _Float16*)p)[i];
    case BF16: return (float)((const __bf16*)p)[i];
    case I32: return ((const int32_t*)p)[i];
    case U32: return ((const u32*)p)[i];
    case I16: return ((const int16_t*)p)[i];
    case U16: return ((const u16*)p)[i];
    case I8: return ((const int8_t*)p)[i];
    default: return ((const u8*)p)[i];
  }
}

// bfloat16 rounded to nearest even. Also what compiled kernels call for a cast (older libgcc lack it).
EXPORT __bf16 __truncsfbf2(float value);

inline void store_number(u32 type, void* p, u32 i, double value) {
  switch (type) {
    case F32: ((float*)p)[i] = (float)value; return;
    case F16: ((_Float16*)p)[i] = (_Float16)(float)value; return;
    case BF16: ((__bf16*)p)[i] = __truncsfbf2((float)value); return;
    case I32:
    case U32: ((u32*)p)[i] = (u32)(i64)value; return;
    case I16:
    case U16: ((u16*)p)[i] = (u16)(i64)value; return;
    default: ((u8*)p)[i] = (u8)(i64)value;
  }
}
