// What the kernels ask of CUDA: the words of Metal they use, and products of matrices on tensor cores.
// dialect_metal.h is its twin. Compute capability 8.0 or newer.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// MLX writes the signature of a kernel. This has it say how many threads there are at most and how
// many blocks a multiprocessor is to hold: the compiler then spends no more registers than they have.
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(128, NA_RESIDENT)

#define DEV
#define TGP
#define THR
#define NA_FN static __device__ __forceinline__
#define NA_UNROLL _Pragma("unroll")
#define NA_ROLLED _Pragma("unroll 1")

typedef unsigned int uint;
#define threadgroup __shared__ __align__(16)
#define thread_index_in_threadgroup threadIdx.x
#define threadgroup_position_in_grid blockIdx
#define threadgroups_per_grid gridDim
struct mem_flags {
  enum { mem_none, mem_device, mem_threadgroup };
};
NA_FN void threadgroup_barrier(int) { __syncthreads(); }
NA_FN void simdgroup_barrier(int) { __syncwarp(); }

NA_FN float na_exp2(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
NA_FN float na_log2(float x) {
  asm("lg2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
NA_FN float na_reciprocal(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
NA_FN float na_fmax(float a, float b) { return fmaxf(a, b); }
NA_FN long na_product(int a, int b) {  // one instruction, wherever the factors come from
  long product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}
NA_FN float na_float(int bits) { return __int_as_float(bits); }

// Elements that move together.
template <typename T, int N>
struct alignas(N * sizeof(T)) na_pack {
  T e[N];
};
template <typename T>
NA_FN bool na_aligned(const T* at, int elements) {
  return reinterpret_cast<size_t>(at) % (elements * sizeof(T)) == 0;
}

// Device to shared memory, past the registers; complete after na_copied and a barrier.
template <int N, typename T>
NA_FN void na_copy(T* to, const T* from) {
  constexpr int BYTES = N * int(sizeof(T));
  if (BYTES >= 4)
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                 :: "r"(unsigned(__cvta_generic_to_shared(to))), "l"(from), "n"(BYTES) : "memory");
  else
    *reinterpret_cast<na_pack<T, N>*>(to) = *reinterpret_cast<const na_pack<T, N>*>(from);
}
NA_FN void na_copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }

enum { NA_PAD_BYTES = 16 };  // between the rows of a slab, against bank conflicts

// A lane holds two neighbors of a matrix row, as tensor cores have them: (row, column) and
// (row, column + 1), and the same of row + 8.
struct na_lane {
  int row;
  int column;
  int token;  // the token of a fragment whose slab row it looks up
};
template <typename T>
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.row = lane >> 2;
  me.column = (lane & 3) * 2;
  me.token = sizeof(T) == 2 ? lane & 7 : me.row;
  return me;
}

// One lane's part of a matrix of 16 rows and 8 columns: element e is column e % 2 of the rows' part
// e / 2.
template <typename T>
struct na_frag {
  T e[4];
};

NA_FN bool na_any(bool x) { return __any_sync(0xffffffffu, x); }

// Reductions over the four lanes that share a matrix row.
NA_FN float na_row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
NA_FN float na_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Where in a slab the eight tokens of a fragment lie: those of my columns, and my token.
struct na_picked {
  int column[2];
  int mine;
};

// All that the lanes do together is volatile: else the compiler may move it into a branch that only
// some of them take.

// ---- 16 bits: matrices of 8 tokens x 8 channels come from the slab with ldmatrix, up to four at
// once: lane i gives the address of row i % 8 of matrix i / 8.

NA_FN unsigned na_bits(__half x) { return __half_as_ushort(x); }
NA_FN unsigned na_bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
template <typename T>
NA_FN unsigned na_pair(const na_frag<T>& part, int h) {
  return na_bits(part.e[2 * h]) | na_bits(part.e[2 * h + 1]) << 16;
}

template <int N>
NA_FN void na_load_matrices(unsigned* to, const void* row, bool transposed) {
  const unsigned at = unsigned(__cvta_generic_to_shared(row));
  if (N == 4 && transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else if (N == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0]) : "r"(at) : "memory");
}

// The matrices of channels 8 f, 8 (f + 1), ... of the tokens that the lanes point to.
template <int F, typename T>
NA_FN void na_load_channels(unsigned* to, const T* row, bool transposed) {
  const int matrix = (threadIdx.x >> 3) & 3;
  NA_UNROLL for (int f = 0; f < F; f += 4) {
    if (F - f >= 4) na_load_matrices<4>(to + f, row + (f + matrix) * 8, transposed);
    else
      NA_UNROLL for (int g = f; g < F; g++) na_load_matrices<1>(to + g, row + g * 8, transposed);
  }
}

#define NA_MULTIPLY(TYPE, NAME)                                                              \
  NA_FN void na_multiply(na_frag<float>& sum, const na_frag<TYPE>& left, unsigned right) {   \
    asm volatile(                                                                            \
        "mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME ".f32 "                        \
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                                \
        : "+f"(sum.e[0]), "+f"(sum.e[1]), "+f"(sum.e[2]), "+f"(sum.e[3])                     \
        : "r"(na_pair(left, 0)), "r"(na_pair(left, 1)), "r"(right));                         \
  }                                                                                          \
  NA_FN void na_multiply_two(na_frag<float>& sum, const na_frag<TYPE>* left,                 \
                             const unsigned* right) {                                        \
    asm volatile(                                                                            \
        "mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                       \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
        : "+f"(sum.e[0]), "+f"(sum.e[1]), "+f"(sum.e[2]), "+f"(sum.e[3])                     \
        : "r"(na_pair(left[0], 0)), "r"(na_pair(left[0], 1)), "r"(na_pair(left[1], 0)),      \
          "r"(na_pair(left[1], 1)), "r"(right[0]), "r"(right[1]));                           \
  }
NA_MULTIPLY(__half, "f16")
NA_MULTIPLY(__nv_bfloat16, "bf16")

// ---- float32: split into the first 10 bits of the mantissa and the rest, whose end the tensor cores
// ignore; the three products that matter keep its precision.

template <int N>
NA_FN void na_split(const float* x, unsigned* high, unsigned* low) {
  NA_UNROLL for (int e = 0; e < N; e++) {
    high[e] = __float_as_uint(x[e]) & 0xffffe000u;
    low[e] = __float_as_uint(x[e] - __uint_as_float(high[e]));
  }
}
NA_FN void na_multiply_tf32(na_frag<float>& sum, const unsigned* a, const unsigned* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum.e[0]), "+f"(sum.e[1]), "+f"(sum.e[2]), "+f"(sum.e[3])
      : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The two numbers of a lane are its columns 2 i and 2 i + 1 here, i and i + 4 to the tensor core:
// for both operands alike, so that the sum over them is the same.
NA_FN void na_multiply(na_frag<float>& sum, const na_frag<float>& left, const float* right) {
  unsigned high_a[4], low_a[4], high_b[2], low_b[2];
  na_split<4>(left.e, high_a, low_a);
  na_split<2>(right, high_b, low_b);
  na_multiply_tf32(sum, low_a, high_b);
  na_multiply_tf32(sum, high_a, low_b);
  na_multiply_tf32(sum, high_a, high_b);
}

// ---- dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.

template <int F, typename T>
NA_FN void na_dot(na_frag<float>& dot, const na_frag<T>* left, const T* slab,
                  const na_picked& at, na_lane) {
  unsigned right[F];
  na_load_channels<F>(right, slab + at.mine, false);
  NA_UNROLL for (int f = 0; f + 1 < F; f += 2) na_multiply_two(dot, left + f, right + f);
  if (F % 2) na_multiply(dot, left[F - 1], right[F - 1]);
}
template <int F>
NA_FN void na_dot(na_frag<float>& dot, const na_frag<float>* left, const float* slab,
                  const na_picked& at, na_lane me) {
  NA_UNROLL for (int f = 0; f < F; f++) {
    const float2 pair =
        *reinterpret_cast<const float2*>(slab + at.mine + f * 8 + me.column);
    const float right[2] = {pair.x, pair.y};
    na_multiply(dot, left[f], right);
  }
}

// ---- sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.

template <int F, typename T>
NA_FN void na_accumulate(na_frag<float>* sum, const na_frag<T>& left, const T* slab,
                         const na_picked& at, na_lane) {
  unsigned right[F];
  na_load_channels<F>(right, slab + at.mine, true);
  NA_UNROLL for (int f = 0; f < F; f++) na_multiply(sum[f], left, right[f]);
}
template <int F>
NA_FN void na_accumulate(na_frag<float>* sum, const na_frag<float>& left, const float* slab,
                         const na_picked& at, na_lane me) {
  NA_UNROLL for (int f = 0; f < F; f++) {
    const float right[2] = {slab[at.column[0] + f * 8 + me.row],
                            slab[at.column[1] + f * 8 + me.row]};
    na_multiply(sum[f], left, right);
  }
}
