// What the kernels ask of Metal: qualifiers, small arithmetic and products of 8x8 matrices.
// dialect_cuda.h answers the same questions for CUDA; a faster core (scalar FMA, tensor ops) would
// replace na_dot and na_accumulate here and nothing else.
#include <metal_simdgroup_matrix>

#define DEV device
#define TGP threadgroup
#define THR thread
#define NA_FN METAL_FUNC
#define NA_UNROLL _Pragma("clang loop unroll(full)")
#define NA_ROLLED _Pragma("clang loop unroll(disable)")

METAL_FUNC float na_exp2(float x) { return metal::fast::exp2(x); }
METAL_FUNC float na_log2(float x) { return metal::fast::log2(x); }
METAL_FUNC float na_fmax(float a, float b) { return metal::max(a, b); }
METAL_FUNC float na_reciprocal(float x) { return 1.0f / x; }
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

// Device to threadgroup memory; complete after na_copied and a barrier.
template <int N, typename T>
METAL_FUNC void na_copy(threadgroup T* to, const device T* from) {
  *(threadgroup na_pack<T, N>*)to = *(const device na_pack<T, N>*)from;
}
METAL_FUNC void na_copied() {}

enum { NA_PAD_BYTES = 16 };  // between the rows of a slab, against bank conflicts

// A lane holds two neighbors of a matrix row: (row, column) and (row, column + 1).
struct na_lane {
  int row;
  int column;
  int token;  // the token of a fragment whose slab row it looks up
};
template <typename T>
METAL_FUNC na_lane na_lane_of(int lane) {
  na_lane me;
  me.row = me.token = ((lane >> 2) & 4) + ((lane >> 1) & 3);
  me.column = ((lane >> 1) & 4) + (lane & 1) * 2;
  return me;
}

// One lane's part of a matrix of NA_ROWS * 8 rows and 8 columns: element e is column e % 2 of the
// rows' part e / 2.
template <typename T>
struct na_frag {
  T e[2 * NA_ROWS];
};

METAL_FUNC bool na_any(bool x) { return simd_any(x); }

// Reductions over the four lanes that share a matrix row.
METAL_FUNC float na_row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}
METAL_FUNC float na_row_max(float x) {
  x = metal::max(x, simd_shuffle_xor(x, 1));
  return metal::max(x, simd_shuffle_xor(x, 8));
}

// Where in a slab the eight tokens of a fragment lie: those of my columns, and my token.
struct na_picked {
  int column[2];
  int mine;
};

// sum += left * right, the eight rows of part h.
template <typename T>
METAL_FUNC void na_multiply(thread na_frag<float>& sum, const thread na_frag<T>& left,
                            vec<T, 2> right, int h) {
  metal::simdgroup_matrix<T, 8, 8> a, b;
  metal::simdgroup_matrix<float, 8, 8> c;
  reinterpret_cast<thread vec<T, 2>&>(a.thread_elements()) =
      vec<T, 2>(left.e[2 * h], left.e[2 * h + 1]);
  reinterpret_cast<thread vec<T, 2>&>(b.thread_elements()) = right;
  reinterpret_cast<thread vec<float, 2>&>(c.thread_elements()) =
      vec<float, 2>(sum.e[2 * h], sum.e[2 * h + 1]);
  simdgroup_multiply_accumulate(c, a, b, c);
  const vec<float, 2> result = reinterpret_cast<thread vec<float, 2>&>(c.thread_elements());
  sum.e[2 * h] = result.x;
  sum.e[2 * h + 1] = result.y;
}

// dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.
template <int F, typename T>
METAL_FUNC void na_dot(thread na_frag<float>& dot, const thread na_frag<T>* left,
                       const threadgroup T* slab, const thread na_picked& at, na_lane me) {
  const threadgroup T *one = slab + me.row + at.column[0], *other = slab + me.row + at.column[1];
  NA_UNROLL for (int f = 0; f < F; f++) {
    const vec<T, 2> right = vec<T, 2>(one[f * 8], other[f * 8]);
    NA_UNROLL for (int h = 0; h < NA_ROWS; h++) na_multiply(dot, left[f], right, h);
  }
}

// sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.
template <int F, typename T>
METAL_FUNC void na_accumulate(thread na_frag<float>* sum, const thread na_frag<T>& left,
                              const threadgroup T* slab, const thread na_picked& at,
                              na_lane me) {
  const threadgroup T* token = slab + me.column + at.mine;
  NA_UNROLL for (int f = 0; f < F; f++) {
    const vec<T, 2> right = *(const threadgroup vec<T, 2>*)(token + f * 8);
    NA_UNROLL for (int h = 0; h < NA_ROWS; h++) na_multiply(sum[f], left, right, h);
  }
}
