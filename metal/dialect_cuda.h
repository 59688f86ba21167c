// What the kernels ask of CUDA: the words of Metal that they use. dialect_metal.h is its twin. Compute
// capability 8.0 or newer.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// MLX writes the signature of a kernel. This has it say how many threads there are at most and how
// many blocks a multiprocessor is to hold: the compiler then spends no more registers than they have.
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(NA_THREADS, NA_RESIDENT)

#define DEV
#define TGP
#define THR
#define NA_FN static __device__ __forceinline__
#define NA_UNROLL _Pragma("unroll")
#define NA_ROLLED _Pragma("unroll 1")

typedef unsigned int uint;
#define NA_SHARED __shared__ __align__(16)
#define NA_SLABS extern __shared__ __align__(16)  // as long as a launch has it
#define NA_DYNAMIC(length)
#define thread_index_in_threadgroup threadIdx.x
#define threadgroup_position_in_grid blockIdx
#define threads_per_threadgroup blockDim
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
NA_FN float na_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
NA_FN float na_fmax(float a, float b) { return fmaxf(a, b); }
NA_FN float na_fmin(float a, float b) { return fminf(a, b); }
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

// What counts the steps between rows: 32 bits, which take half of the instructions, where WIDE elements move
// at once, since then they are enough (na_moves in stage.h).
template <int WIDE>
struct na_unit {
  typedef int count;
  enum { HALVINGS = (WIDE > 1) + (WIDE > 2) + (WIDE > 4) };  // a power of two, 8 at most
};
template <>
struct na_unit<1> {
  typedef long count;
  enum { HALVINGS = 0 };
};

// Two neighbors in one register, as those that a third argument points to.
NA_FN unsigned na_bits(__half x) { return __half_as_ushort(x); }
NA_FN unsigned na_bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
template <typename T>
NA_FN unsigned na_two(const T* pair, const T*) {
  return na_bits(pair[0]) | na_bits(pair[1]) << 16;
}
NA_FN unsigned na_two(const float* pair, const __half*) {
  const __half2 two = __floats2half2_rn(pair[0], pair[1]);
  return *reinterpret_cast<const unsigned*>(&two);
}
NA_FN unsigned na_two(const float* pair, const __nv_bfloat16*) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(pair[0], pair[1]);
  return *reinterpret_cast<const unsigned*>(&two);
}

// Has two neighbors share a register for as long as they live: no compiler takes them apart.
NA_FN void na_join(float*) {}
template <typename T>
NA_FN void na_join(T* pair) {
  unsigned both = na_two(pair, pair);
  asm volatile("" : "+r"(both));
  const unsigned short low = both & 0xffff, high = both >> 16;
  pair[0] = *reinterpret_cast<const T*>(&low);
  pair[1] = *reinterpret_cast<const T*>(&high);
}

// Device to shared memory, past the registers; complete after na_copied and a barrier.
template <int N, typename T>
NA_FN void na_copy(T* to, const T* from) {
  constexpr int BYTES = N * int(sizeof(T));
  if (BYTES >= 4)  // by the first cache: past it (.cg) takes half as long again
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                 :: "r"(unsigned(__cvta_generic_to_shared(to))), "l"(from), "n"(BYTES) : "memory");
  else
    *reinterpret_cast<na_pack<T, N>*>(to) = *reinterpret_cast<const na_pack<T, N>*>(from);
}
// What wgmma reads was not written in its own way: it is told.
NA_FN void na_copied() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (NA_PLANE > 0)
    asm volatile("wgmma.wait_group.sync.aligned 0; fence.proxy.async.shared::cta;" ::: "memory");
}

// The lanes of the caller's team; those of other teams may be anywhere.
NA_FN unsigned na_team() {
  return NA_TEAM < 32 ? ((1u << NA_TEAM % 32) - 1) << (threadIdx.x & (32 - NA_TEAM)) : ~0u;
}
// Of the lane whose number differs in these bits.
template <typename T>
NA_FN T na_lane_xor(T x, int bits) {
  return __shfl_xor_sync(na_team(), x, bits);
}
NA_FN bool na_any(bool x) { return __any_sync(0xffffffffu, x); }
