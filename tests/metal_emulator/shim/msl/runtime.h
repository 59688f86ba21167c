// Entry points of the emulator's runtime (rt/*.cpp). The strict check sees only the declarations.
#pragma once

// Default argument that identifies a call in the source: line | column << 20.
#define MSL_SITE uint __site = (uint)__builtin_LINE() | ((uint)__builtin_COLUMN() << 20)

extern "C" {
void __msl_barrier(uint flags, uint scope, uint site) __attribute__((convergent));
void __msl_reduce(thread void* value, uint op, uint type, uint count, uint width, uint site)
    __attribute__((convergent));
void __msl_shuffle(thread void* value, uint bytes, int source, uint mode, uint width, uint site)
    __attribute__((convergent));
ulong __msl_ballot(uint predicate, uint width, uint site) __attribute__((convergent));
void __msl_matrix_multiply(thread void* d, const thread void* a, const thread void* b,
                           const thread void* c, uint types, uint site)
    __attribute__((convergent));
void __msl_tensor_multiply(thread void* sum, const thread void* left, const thread void* right,
                           uint modes, uint types, uint site) __attribute__((convergent));
ulong __msl_atomic(ulong address, uint op, uint type, ulong value, ulong expected);
void __msl_fence(uint flags);
uint __msl_lane(void);
threadgroup void* __msl_threadgroup_variable(uint id, uint bytes, uint alignment,
                                             const constant char* name);

float expf(float);
float exp2f(float);
float exp10f(float);
float logf(float);
float log2f(float);
float log10f(float);
float sqrtf(float);
float sinf(float);
float cosf(float);
float tanf(float);
float asinf(float);
float acosf(float);
float atanf(float);
float sinhf(float);
float coshf(float);
float tanhf(float);
float asinhf(float);
float acoshf(float);
float atanhf(float);
float powf(float, float);
float atan2f(float, float);
float fmodf(float, float);
float ldexpf(float, int);
float nextafterf(float, float);
float frexpf(float, thread int*);
}

// Where a thread stands in its launch; rt/runtime.h has the same struct.
struct __msl_coordinates {
  uint grid_position[3], threadgroup_position[3], group_position[3];
  uint group_size[3], dispatched_group_size[3], grid_size[3], groups[3];
  uint lane, simdgroup, index, simdgroups;
};
inline uint3 __msl_uint3(const thread uint* p) { return uint3{p[0], p[1], p[2]}; }
