// What the kernels ask of Metal: qualifiers, copies, small arithmetic, and words between lanes.
// dialect_cuda.h answers the same questions for CUDA.
#include <metal_simdgroup_matrix>

#define DEV device
#define TGP threadgroup
#define THR thread
// Arrays of threadgroup memory. Up to 16 bytes of one move at once, wherever the compiler lays it.
#define NA_SHARED alignas(16) threadgroup
#define NA_SLABS alignas(16) threadgroup
#define NA_DYNAMIC(length) length  // which a launch may tell elsewhere
#define NA_FN METAL_FUNC
#define NA_UNROLL _Pragma("clang loop unroll(full)")
#define NA_ROLLED _Pragma("clang loop unroll(disable)")

METAL_FUNC float na_exp2(float x) { return metal::fast::exp2(x); }
METAL_FUNC float na_log2(float x) { return metal::fast::log2(x); }
METAL_FUNC float na_fmax(float a, float b) { return metal::max(a, b); }
METAL_FUNC float na_fmin(float a, float b) { return metal::min(a, b); }
METAL_FUNC float na_multiply_add(float a, float b, float c) { return metal::fma(a, b, c); }
METAL_FUNC float na_reciprocal(float x) { return metal::fast::divide(1.0f, x); }
METAL_FUNC long na_product(int a, int b) { return long(a) * b; }
METAL_FUNC float na_float(int bits) { return as_type<float>(bits); }

// Elements that move together.
template <typename T, int N>
struct alignas(N * sizeof(T)) na_pack {
  T e[N];
};
template <typename T>
METAL_FUNC bool na_aligned(const device T* at, int elements) {
  return reinterpret_cast<size_t>(at) % (elements * sizeof(T)) == 0;
}

// What counts the steps between rows, and of how many elements a step is one: halved so often.
template <int WIDE>
struct na_unit {
  typedef long count;
  enum { HALVINGS = 0 };
};

// Has two neighbors share a register: here the compiler sees to that.
template <typename T>
METAL_FUNC void na_join(thread T*) {}

// Device to threadgroup memory; complete after na_copied and a barrier.
template <int N, typename T>
METAL_FUNC void na_copy(threadgroup T* to, const device T* from) {
  *(threadgroup na_pack<T, N>*)to = *(const device na_pack<T, N>*)from;
}
METAL_FUNC void na_copied() {}

// Of the lane whose number differs in these bits. Lanes outside of both may be anywhere.
template <typename T>
METAL_FUNC T na_lane_xor(T x, int bits) {
  return simd_shuffle_xor(x, ushort(bits));
}
METAL_FUNC bool na_any(bool x) { return simd_any(x); }
