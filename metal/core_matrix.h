// Products of 8x8 matrices by Metal's simdgroups: a team is a simdgroup.

enum { NA_SECOND_LANE = 8 };  // what the numbers of two lanes that share a row differ by, besides 1
enum { NA_KEEPS_SEEN = 1 };   // in threadgroup memory (slab.h)
enum { NA_KEEPS_MINE = 0 };   // in registers (team.h)
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

// A lane holds two neighbors of a matrix row: (row, column) and (row, column + 1).
template <typename T>
METAL_FUNC na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = ((lane >> 2) & 4) + ((lane >> 1) & 3);
  me.column = ((lane >> 1) & 4) + (lane & 1) * 2;
  me.wide = sizeof(T) == 4;
  return me;
}

// The token of a fragment that a lane looks up for its matrix i.
METAL_FUNC int na_lookup(na_lane me, int i) { return me.row + i * 8; }

// sum += left * right, of two neighbors each.
template <typename M>
METAL_FUNC void na_multiply(thread float* sum, vec<M, 2> left, vec<M, 2> right) {
  metal::simdgroup_matrix<M, 8, 8> a, b;
  metal::simdgroup_matrix<float, 8, 8> c;
  reinterpret_cast<thread vec<M, 2>&>(a.thread_elements()) = left;
  reinterpret_cast<thread vec<M, 2>&>(b.thread_elements()) = right;
  reinterpret_cast<thread vec<float, 2>&>(c.thread_elements()) = vec<float, 2>(sum[0], sum[1]);
  simdgroup_multiply_accumulate(c, a, b, c);
  const vec<float, 2> result = reinterpret_cast<thread vec<float, 2>&>(c.thread_elements());
  sum[0] = result.x;
  sum[1] = result.y;
}

// dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.
template <int F, bool SWAPPED = false, typename T>
METAL_FUNC void na_dot(thread na_pairs<float>& dot, const thread na_frag<T>* left,
                       const threadgroup T* slab, const thread na_picked& at, na_lane me) {
  typedef typename na_operand<T>::type M;
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t += 2) {
    const threadgroup T* one = slab + me.row + at.column[t];
    const threadgroup T* other = slab + me.row + at.column[t + 1];
    NA_UNROLL for (int f = 0; f < F; f++) {
      const vec<M, 2> right = vec<M, 2>(M(one[f * 8]), M(other[f * 8]));
      NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
        na_multiply(dot.e + h * NA_PER_ROW + t,
                    vec<M, 2>(M(left[f].e[2 * h]), M(left[f].e[2 * h + 1])), right);
    }
  }
}

// sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.
template <int F, typename T>
METAL_FUNC void na_accumulate(thread na_frag<float>* sum, const thread na_pairs<float>& left,
                              const threadgroup T* slab, const thread na_picked& at,
                              na_lane me) {
  typedef typename na_operand<T>::type M;
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t += 2) {
    const threadgroup T* token = slab + me.column + at.mine[t / 2];
    NA_UNROLL for (int f = 0; f < F; f++) {
      const vec<T, 2> two = *(const threadgroup vec<T, 2>*)(token + f * 8);
      const vec<M, 2> right = vec<M, 2>(M(two.x), M(two.y));
      NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
        const thread float* pair = left.e + h * NA_PER_ROW + t;
        na_multiply(sum[f].e + 2 * h, vec<M, 2>(M(pair[0]), M(pair[1])), right);
      }
    }
  }
}
