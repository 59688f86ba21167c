// What the kernels ask of Metal: qualifiers, small arithmetic and 8x8 matrix fragments. dialect_cuda.h
// answers the same questions for CUDA; a faster core (scalar FMA, tensor ops) would replace the
// fragments here and nothing else.
#include <metal_simdgroup_matrix>

#define DEV device
#define TGP threadgroup
#define THR thread
#define NA_FN METAL_FUNC
#define NA_UNROLL _Pragma("clang loop unroll(full)")

METAL_FUNC float na_exp2(float x) { return metal::fast::exp2(x); }
METAL_FUNC float na_log2(float x) { return metal::fast::log2(x); }
METAL_FUNC float na_fmax(float a, float b) { return metal::max(a, b); }
METAL_FUNC float na_float(int bits) { return as_type<float>(bits); }

enum { NA_PAD_BYTES = 16 };  // between the rows of a slab, against bank conflicts

// One lane's part of an 8x8 matrix: two neighbors in a row, at (row, column) and (row, column + 1).
struct na_lane {
  int row;
  int column;
};
METAL_FUNC na_lane na_lane_of(int lane) {
  na_lane me;
  me.row = ((lane >> 2) & 4) + ((lane >> 1) & 3);
  me.column = ((lane >> 1) & 4) + (lane & 1) * 2;
  return me;
}
template <typename T>
struct na_frag {
  T e[2];
};

// Reductions over the four lanes that share a matrix row.
METAL_FUNC float na_row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}
METAL_FUNC float na_row_max(float x) {
  x = metal::max(x, simd_shuffle_xor(x, 1));
  return metal::max(x, simd_shuffle_xor(x, 8));
}

// d += a * b
template <typename A, typename B>
METAL_FUNC void na_mma(thread na_frag<float>& d, na_frag<A> a, na_frag<B> b) {
  metal::simdgroup_matrix<A, 8, 8> left;
  metal::simdgroup_matrix<B, 8, 8> right;
  metal::simdgroup_matrix<float, 8, 8> sum;
  reinterpret_cast<thread vec<A, 2>&>(left.thread_elements()) = vec<A, 2>(a.e[0], a.e[1]);
  reinterpret_cast<thread vec<B, 2>&>(right.thread_elements()) = vec<B, 2>(b.e[0], b.e[1]);
  reinterpret_cast<thread vec<float, 2>&>(sum.thread_elements()) = vec<float, 2>(d.e[0], d.e[1]);
  simdgroup_multiply_accumulate(sum, left, right, sum);
  const vec<float, 2> result = reinterpret_cast<thread vec<float, 2>&>(sum.thread_elements());
  d.e[0] = result.x;
  d.e[1] = result.y;
}

// Where in a slab the eight tokens of a fragment lie: the one of my matrix row, those of my columns.
struct na_picked {
  int row;
  int column[2];
};

// The right-hand matrix whose columns are tokens: [channel, token].
template <int PITCH, typename T>
METAL_FUNC na_frag<T> na_tokens_across(const threadgroup T* slab, na_picked at, na_lane me,
                                       int channel) {
  na_frag<T> b;
  b.e[0] = slab[at.column[0] * PITCH + channel + me.row];
  b.e[1] = slab[at.column[1] * PITCH + channel + me.row];
  return b;
}

// The right-hand matrix whose rows are tokens: [token, channel].
template <int PITCH, typename T>
METAL_FUNC na_frag<T> na_tokens_down(const threadgroup T* slab, na_picked at, na_lane me,
                                     int channel) {
  const vec<T, 2> pair =
      *(const threadgroup vec<T, 2>*)(slab + at.row * PITCH + channel + me.column);
  na_frag<T> b;
  b.e[0] = pair.x;
  b.e[1] = pair.y;
  return b;
}
