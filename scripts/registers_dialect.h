// Stands in for dialect_metal.h where Mesa's compiler for Apple's GPUs reads the kernels
// (scripts/registers.py): the same words in C++ for OpenCL.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define DEV __global
#define TGP __local
#define THR __private
#define device __global
#define threadgroup __local
#define thread __private
#define METAL_FUNC static inline __attribute__((always_inline))
#define NA_FN METAL_FUNC
#define NA_SHARED __local __attribute__((aligned(16)))
#define NA_SLABS NA_SHARED
#define NA_DYNAMIC(length) length
#define NA_UNROLL _Pragma("clang loop unroll(full)")
#define NA_ROLLED _Pragma("clang loop unroll(disable)")

// Mesa takes a call of nir_NAME[__suffix] for its instruction NAME.
extern "C" {
float nir_fexp2__f(float) __attribute__((const));
float nir_flog2__f(float) __attribute__((const));
float nir_frcp__f(float) __attribute__((const));
float nir_ffma__f(float, float, float) __attribute__((const));
float nir_shuffle_xor__f(float, uint) __attribute__((convergent));
int nir_shuffle_xor__i(int, uint) __attribute__((convergent));
float nir_quad_swap_horizontal__f(float) __attribute__((convergent));
int nir_quad_swap_horizontal__i(int) __attribute__((convergent));
float nir_quad_swap_vertical__f(float) __attribute__((convergent));
int nir_quad_swap_vertical__i(int) __attribute__((convergent));
float nir_quad_swap_diagonal__f(float) __attribute__((convergent));
int nir_quad_swap_diagonal__i(int) __attribute__((convergent));
uint nir_ballot__u(bool) __attribute__((convergent));
}
NA_FN float na_exp2(float x) { return nir_fexp2__f(x); }
NA_FN float na_log2(float x) { return nir_flog2__f(x); }
NA_FN float na_fmax(float a, float b) { return a > b ? a : b; }
NA_FN float na_fmin(float a, float b) { return a < b ? a : b; }
NA_FN float na_multiply_add(float a, float b, float c) { return nir_ffma__f(a, b, c); }
NA_FN float na_reciprocal(float x) { return nir_frcp__f(x); }
NA_FN long na_product(int a, int b) { return long(a) * b; }
NA_FN float na_float(int bits) { return as_float(bits); }

template <typename T, int N>
struct alignas(N * sizeof(T)) na_pack {
  T e[N];
};
template <typename T>
NA_FN bool na_aligned(const DEV T* at, int elements) {
  return reinterpret_cast<size_t>(at) % (elements * sizeof(T)) == 0;
}
template <int BYTES>
struct na_words;
template <>
struct na_words<2> {
  typedef ushort type;
};
template <>
struct na_words<4> {
  typedef uint type;
};
template <>
struct na_words<8> {
  typedef uint2 type;
};
template <>
struct na_words<16> {
  typedef uint4 type;
};
template <int N, typename T>
NA_FN void na_copy(TGP T* to, const DEV T* from) {
  typedef typename na_words<N * sizeof(T)>::type words;
  *(TGP words*)to = *(const DEV words*)from;
}
template <int WIDE>
struct na_unit {
  typedef long count;
  enum { HALVINGS = 0 };
};
template <typename T>
NA_FN void na_join(THR T*) {}
NA_FN void na_copied() {}

NA_FN float na_lane_xor(float x, int bits) {
  return bits == 1   ? nir_quad_swap_horizontal__f(x)
         : bits == 2 ? nir_quad_swap_vertical__f(x)
         : bits == 3 ? nir_quad_swap_diagonal__f(x)
                     : nir_shuffle_xor__f(x, bits);
}
NA_FN int na_lane_xor(int x, int bits) {
  return bits == 1   ? nir_quad_swap_horizontal__i(x)
         : bits == 2 ? nir_quad_swap_vertical__i(x)
         : bits == 3 ? nir_quad_swap_diagonal__i(x)
                     : nir_shuffle_xor__i(x, bits);
}
NA_FN bool na_any(bool x) { return nir_ballot__u(x) != 0; }

struct mem_flags {
  enum { mem_none, mem_device, mem_threadgroup };
};
NA_FN void threadgroup_barrier(int) { barrier(CLK_LOCAL_MEM_FENCE); }
NA_FN void simdgroup_barrier(int) {}  // lanes are together anyway, and memory is not asked

// Mesa has no products of 8 x 8 matrices. What a lane holds of one, in four multiply-adds with the same
// six numbers in and two out: right about registers, and about nothing else.
template <typename T, int N>
struct alignas(N * sizeof(T)) vec {
  T x, y;
  vec() = default;
  vec(T a, T b) : x(a), y(b) {}
};
struct bfloat;  // which Mesa has not
namespace metal {
template <bool, typename T, typename>
struct na_either {
  typedef T type;
};
template <typename T, typename U>
struct na_either<false, T, U> {
  typedef U type;
};
template <bool FIRST, typename T, typename U>
using conditional_t = typename na_either<FIRST, T, U>::type;
template <typename T, int ROWS, int COLUMNS>
struct simdgroup_matrix {
  vec<T, 2> held;
  THR vec<T, 2>& thread_elements() THR { return held; }
};
}
template <typename T>
NA_FN void simdgroup_multiply_accumulate(THR metal::simdgroup_matrix<float, 8, 8>& sum,
                                         const THR metal::simdgroup_matrix<T, 8, 8>& left,
                                         const THR metal::simdgroup_matrix<T, 8, 8>& right,
                                         const THR metal::simdgroup_matrix<float, 8, 8>&) {
  const float a = float(left.held.x), b = float(left.held.y);
  const float c = float(right.held.x), d = float(right.held.y);
  sum.held.x = na_multiply_add(a, c, na_multiply_add(b, d, sum.held.x));
  sum.held.y = na_multiply_add(a, d, na_multiply_add(b, c, sum.held.y));
}
