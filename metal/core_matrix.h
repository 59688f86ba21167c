// Products of 8x8 matrices by Metal's simdgroups: a team is a simdgroup.

enum { NA_SECOND_LANE = 8 };  // what the numbers of two lanes that share a row differ by, besides 1
enum { NA_SAME_DOTS = 0 };    // nobody promises an order of sums (rows.h)
enum { NA_MOST_HELD = 56 };    // registers for a team's rows, that leave enough for all else

// What matrices hold. GPUs before the M3 have no bfloat: widening one is a shift, but rounding a weight
// to it takes many instructions there, and products of them are made of others.
template <typename T>
struct na_operand {
  typedef T type;
};
template <>
struct na_operand<bfloat> {
  typedef metal::conditional_t<NA_BFLOAT, bfloat, float> type;
};

// The type in which weights are multiplied.
template <typename T>
using na_weight = typename na_operand<T>::type;

// A lane holds two neighbors of a matrix row: (row, column) and (row, column + 1).
template <typename T>
METAL_FUNC na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = me.token = ((lane >> 2) & 4) + ((lane >> 1) & 3);
  me.column = ((lane >> 1) & 4) + (lane & 1) * 2;
  return me;
}

// sum += left * right, the eight rows of part h.
template <typename L, typename T>
METAL_FUNC void na_multiply(thread float* sum, const thread L* left, vec<T, 2> right, int h) {
  typedef typename na_operand<T>::type M;
  metal::simdgroup_matrix<M, 8, 8> a, b;
  metal::simdgroup_matrix<float, 8, 8> c;
  reinterpret_cast<thread vec<M, 2>&>(a.thread_elements()) =
      vec<M, 2>(M(left[2 * h]), M(left[2 * h + 1]));
  reinterpret_cast<thread vec<M, 2>&>(b.thread_elements()) = vec<M, 2>(M(right.x), M(right.y));
  reinterpret_cast<thread vec<float, 2>&>(c.thread_elements()) =
      vec<float, 2>(sum[2 * h], sum[2 * h + 1]);
  simdgroup_multiply_accumulate(c, a, b, c);
  const vec<float, 2> result = reinterpret_cast<thread vec<float, 2>&>(c.thread_elements());
  sum[2 * h] = result.x;
  sum[2 * h + 1] = result.y;
}

// dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.
template <int F, bool SWAPPED = false, typename T>
METAL_FUNC void na_dot(thread na_pairs<float>& dot, const thread na_frag<T>* left,
                       const threadgroup T* slab, const thread na_picked& at, na_lane me) {
  const threadgroup T *one = slab + me.row + at.column[0], *other = slab + me.row + at.column[1];
  NA_UNROLL for (int f = 0; f < F; f++) {
    const vec<T, 2> right = vec<T, 2>(one[f * 8], other[f * 8]);
    NA_UNROLL for (int h = 0; h < NA_ROWS; h++) na_multiply(dot.e, left[f].e, right, h);
  }
}

// sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.
template <int F, typename L, typename T>
METAL_FUNC void na_accumulate(thread na_frag<float>* sum, const thread na_pairs<L>& left,
                              const threadgroup T* slab, const thread na_picked& at,
                              na_lane me) {
  const threadgroup T* token = slab + me.column + at.mine;
  NA_UNROLL for (int f = 0; f < F; f++) {
    const vec<T, 2> right = *(const threadgroup vec<T, 2>*)(token + f * 8);
    NA_UNROLL for (int h = 0; h < NA_ROWS; h++) na_multiply(sum[f].e, left.e, right, h);
  }
}
