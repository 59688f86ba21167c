// What the kernels ask of CUDA: the words of Metal they use, and 8x8 matrix fragments on tensor cores.
// dialect_metal.h is its twin. Compute capability 8.0 or newer.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEV
#define TGP
#define THR
#define NA_FN static __device__ __forceinline__
#define NA_UNROLL _Pragma("unroll")

#define threadgroup __shared__ __align__(16)
#define thread_index_in_threadgroup threadIdx.x
#define threadgroup_position_in_grid blockIdx
#define threadgroups_per_grid gridDim
struct mem_flags {
  enum { mem_none, mem_device, mem_threadgroup };
};
NA_FN void threadgroup_barrier(int) { __syncthreads(); }
NA_FN void simdgroup_barrier(int) { __syncwarp(); }

NA_FN float na_exp2(float x) { return exp2f(x); }
NA_FN float na_log2(float x) { return log2f(x); }
NA_FN float na_fmax(float a, float b) { return fmaxf(a, b); }
NA_FN float na_float(int bits) { return __int_as_float(bits); }

enum { NA_PAD_BYTES = 16 };  // between the rows of a slab, against bank conflicts

// One lane's part of an 8x8 matrix: two neighbors in a row, as the tensor cores have it in their left
// operand and in their result. Their right operand is held transposed.
struct na_lane {
  int row;
  int column;
};
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.row = lane >> 2;
  me.column = (lane & 3) * 2;
  return me;
}
template <typename T>
struct alignas(2 * sizeof(T)) na_frag {
  T e[2];
};

// Reductions over the four lanes that share a matrix row.
NA_FN float na_row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
NA_FN float na_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// d += a * b: the upper half of a 16x8x8 product, whose lower half has zeros.
#define NA_MMA_16BIT(NAME)                                                              \
  float z0 = 0.0f, z1 = 0.0f;                                                           \
  asm("mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME ".f32 "                     \
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                             \
      : "+f"(d.e[0]), "+f"(d.e[1]), "+f"(z0), "+f"(z1)                                  \
      : "r"(reinterpret_cast<const unsigned&>(a)), "r"(0u),                             \
        "r"(reinterpret_cast<const unsigned&>(b)))

NA_FN void na_mma(na_frag<float>& d, na_frag<__half> a, na_frag<__half> b) { NA_MMA_16BIT("f16"); }
NA_FN void na_mma(na_frag<float>& d, na_frag<__nv_bfloat16> a, na_frag<__nv_bfloat16> b) {
  NA_MMA_16BIT("bf16");
}

// float32 is split into two tf32 numbers; the three products that matter keep float32's precision.
NA_FN unsigned na_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
NA_FN void na_mma_tf32(na_frag<float>& d, const unsigned* a, const unsigned* b) {
  float z0 = 0.0f, z1 = 0.0f;
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d.e[0]), "+f"(d.e[1]), "+f"(z0), "+f"(z1)
      : "r"(a[0]), "r"(0u), "r"(a[1]), "r"(0u), "r"(b[0]), "r"(b[1]));
}
NA_FN void na_mma(na_frag<float>& d, na_frag<float> a, na_frag<float> b) {
  unsigned high_a[2], low_a[2], high_b[2], low_b[2];
  NA_UNROLL for (int e = 0; e < 2; e++) {
    high_a[e] = na_tf32(a.e[e]);
    high_b[e] = na_tf32(b.e[e]);
    low_a[e] = na_tf32(a.e[e] - __uint_as_float(high_a[e]));
    low_b[e] = na_tf32(b.e[e] - __uint_as_float(high_b[e]));
  }
  na_mma_tf32(d, low_a, high_b);
  na_mma_tf32(d, high_a, low_b);
  na_mma_tf32(d, high_a, high_b);
}

// Where in a slab the eight tokens of a fragment lie: the one of my matrix row, those of my columns.
struct na_picked {
  int row;
  int column[2];
};

// The right-hand matrix whose columns are tokens: [channel, token].
template <int PITCH, typename T>
NA_FN na_frag<T> na_tokens_across(const T* slab, na_picked at, na_lane me, int channel) {
  return *reinterpret_cast<const na_frag<T>*>(slab + at.row * PITCH + channel + me.column);
}

// The right-hand matrix whose rows are tokens: [token, channel].
template <int PITCH, typename T>
NA_FN na_frag<T> na_tokens_down(const T* slab, na_picked at, na_lane me, int channel) {
  na_frag<T> b;
  b.e[0] = slab[at.column[0] * PITCH + channel + me.row];
  b.e[1] = slab[at.column[1] * PITCH + channel + me.row];
  return b;
}
