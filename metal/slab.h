// Slabs: tokens in threadgroup memory, the simdgroups' walk over them, and per-position sums.

// How far a slab of at most `capacity` tokens reaches, in pieces of about equal size.
template <int RANK>
NA_FN na_point na_slab_size(const na_box box, int capacity) {
  na_point size = na_size(1, 1, 1);
  NA_EACH_AXIS_BACK(a) {
    const int length = na_max(box.high[a] - box.low[a], 1);
    size.at[a] = na_pieces(length, na_pieces(length, na_min(length, capacity)));
    capacity = na_quotient(capacity, size.at[a]);
  }
  return size;
}

template <int RANK>
NA_FN na_box na_slab(const na_box box, const na_point size, int z, int y, int x) {
  const na_point low = na_size(z, y, x);
  na_box slab;
  NA_EACH_AXIS(a) {
    slab.low[a] = low.at[a];
    slab.high[a] = na_min(low.at[a] + size.at[a], box.high[a]);
  }
  return slab;
}

// The slabs of a box, one after the other; an axis that the problem has not is passed once.
#define NA_EACH_SLAB(box, size)                                                                   \
  for (int z = RANK > 2 ? box.low[0] : 0; z < (RANK > 2 ? box.high[0] : 1); z += size.at[0])      \
    for (int y = RANK > 1 ? box.low[1] : 0; y < (RANK > 1 ? box.high[1] : 1); y += size.at[1])    \
      for (int x = box.low[2]; x < box.high[2]; x += size.at[2])

// The tokens that a box and a slab have in common, numbered row by row.
struct na_walk {
  na_box box;
  int count;
  int size[3];
  int slab[3];        // slab row of token (z, y, x): start + z * slab[0] + y * slab[1] + x
  int start;
  int last;           // slab row of the last token
  int step[3];        // of a walk in strides: how far a stride leads on each axis
};

template <int RANK>
NA_FN na_walk na_walk_over(const na_box box, const na_box slab, int stride) {
  na_walk walk;
  walk.count = 1;
  walk.start = walk.last = 0;
  int pitch = 1;
  NA_EACH_AXIS_BACK(a) {
    walk.box.low[a] = na_max(box.low[a], slab.low[a]);
    walk.box.high[a] = na_max(na_min(box.high[a], slab.high[a]), walk.box.low[a]);
    walk.size[a] = walk.box.high[a] - walk.box.low[a];
    walk.count *= walk.size[a];
    walk.slab[a] = pitch;
    walk.start -= slab.low[a] * pitch;
    walk.last += (walk.box.high[a] - 1 - slab.low[a]) * pitch;
    pitch *= slab.high[a] - slab.low[a];
    const int rest = na_quotient(stride, na_max(walk.size[a], 1));
    walk.step[a] = a > 3 - RANK ? stride - rest * walk.size[a] : stride;
    stride = rest;
  }
  return walk;
}

// Token number i of a walk.
template <int RANK>
NA_FN na_point na_token(const na_walk walk, int i) {
  na_point token;
  NA_EACH_AXIS_BACK(a) {
    const int rest = a > 3 - RANK ? na_quotient(i, na_max(walk.size[a], 1)) : 0;
    token.at[a] = walk.box.low[a] + i - rest * walk.size[a];
    i = rest;
  }
  return token;
}

// One stride on.
template <int RANK>
NA_FN void na_advance(const na_walk walk, THR na_point& token) {
  int carry = 0;
  NA_EACH_AXIS_BACK(a) {
    token.at[a] += walk.step[a] + carry;
    carry = a > 3 - RANK && token.at[a] >= walk.box.high[a] ? 1 : 0;
    if (carry) token.at[a] -= walk.size[a];
  }
}

template <int RANK>
NA_FN int na_slab_row(const na_walk walk, const na_point token) {
  int row = walk.start;
  NA_EACH_AXIS(a) row += token.at[a] * walk.slab[a];
  return na_min(row, walk.last);  // beyond the last token stay with it
}

// The eight tokens of a fragment, as one lane sees them: those of its two columns, and the one whose
// row it reads for its simdgroup.
struct na_eight {
  na_point column[2];
  na_point mine;
};

template <int RANK>
NA_FN na_eight na_first_eight(const na_walk walk, na_lane me) {
  na_eight tokens;
  tokens.mine = na_token<RANK>(walk, me.token);
  NA_UNROLL for (int e = 0; e < 2; e++)
    tokens.column[e] = na_token<RANK>(walk, me.column + e);
  return tokens;
}

template <int RANK>
NA_FN void na_next_eight(const na_walk walk, THR na_eight& tokens) {
  na_advance<RANK>(walk, tokens.mine);
  NA_UNROLL for (int e = 0; e < 2; e++) na_advance<RANK>(walk, tokens.column[e]);
}

template <int RANK>
NA_FN na_picked na_pick(const na_walk walk, const na_eight tokens) {
  na_picked at;
  at.mine = na_slab_row<RANK>(walk, tokens.mine);
  NA_UNROLL for (int e = 0; e < 2; e++)
    at.column[e] = na_slab_row<RANK>(walk, tokens.column[e]);
  return at;
}

// ---- Filling a slab.

// Elements copied at once: 16 bytes where the row allows it.
template <typename T, int D>
struct na_vector {
  enum { WIDE = 16 / int(sizeof(T)) };
  enum { SIZE = D % WIDE == 0 ? int(WIDE) : D % 4 == 0 ? 4 : D % 2 == 0 ? 2 : 1 };
  struct alignas(SIZE * sizeof(T)) pack {
    T e[SIZE];
  };
};

// A slab row of D elements, rounded up to whole fragments and padded against bank conflicts.
template <typename T, int D>
NA_FN constexpr int na_pitch() {
  return (D + 7) / 8 * 8 + NA_PAD_BYTES / int(sizeof(T));
}

// Copies the rows [D] of all tokens of `slab` from device to threadgroup memory.
template <int RANK, int THREADS, int D, typename T>
NA_FN void na_stage(TGP T* to, const DEV T* from, const na_rows rows, const na_box slab,
                    int thread_index) {
  typedef typename na_vector<T, D>::pack pack;
  constexpr int SIZE = na_vector<T, D>::SIZE, VECTORS = D / SIZE, PITCH = na_pitch<T, D>();
  constexpr bool EVEN = THREADS % VECTORS == 0;  // a thread then always copies the same columns
  const na_walk walk = na_walk_over<RANK>(slab, slab, THREADS / VECTORS);
  na_point token = na_token<RANK>(walk, thread_index / VECTORS);
  for (int i = thread_index; i < walk.count * VECTORS; i += THREADS) {
    if (!EVEN) token = na_token<RANK>(walk, i / VECTORS);
    const int d = i % VECTORS * SIZE;
    *(TGP pack*)(to + i / VECTORS * PITCH + d) =
        *(const DEV pack*)(from + na_row<RANK>(rows, token) * D + d);
    if (EVEN) na_advance<RANK>(walk, token);
  }
}

// The same for one float per token.
template <int RANK, int THREADS>
NA_FN void na_stage_floats(TGP float* to, const DEV float* from, const na_rows rows,
                           const na_box slab, int thread_index) {
  const na_walk walk = na_walk_over<RANK>(slab, slab, THREADS);
  na_point token = na_token<RANK>(walk, thread_index);
  for (int i = thread_index; i < walk.count; i += THREADS) {
    to[i] = from[na_row<RANK>(rows, token)];
    na_advance<RANK>(walk, token);
  }
}

// Zeroes the elements between D and the end of its last fragment in every row of a slab.
template <int THREADS, int D, typename T>
NA_FN void na_clear_tails(TGP T* slab, int rows, int thread_index) {
  constexpr int TAIL = (8 - D % 8) % 8, PITCH = na_pitch<T, D>();
  if (TAIL > 0)
    for (int i = thread_index; i < rows * TAIL; i += THREADS)
      slab[i / (TAIL + !TAIL) * PITCH + D + i % (TAIL + !TAIL)] = T(0.0f);
}

// ---- Rows of device memory as fragments, zero beyond D: element e is column e % 2 of row e / 2.

template <int D, typename T>
NA_FN void na_load(THR na_frag<T>* part, int h, const DEV T* row, na_lane me) {
  NA_UNROLL for (int f = 0; f < (D + 7) / 8; f++)
    NA_UNROLL for (int e = 0; e < 2; e++) {
      const int d = f * 8 + me.column + e;
      part[f].e[h * 2 + e] = D % 8 == 0 || d < D ? row[d] : T(0.0f);
    }
}

template <int D, typename T>
NA_FN void na_store(DEV T* row, const THR na_frag<float>* part, int h, na_lane me, float factor) {
  NA_UNROLL for (int f = 0; f < (D + 7) / 8; f++)
    NA_UNROLL for (int e = 0; e < 2; e++) {
      const int d = f * 8 + me.column + e;
      if (D % 8 == 0 || d < D) row[d] = T(part[f].e[h * 2 + e] * factor);
    }
}

template <int F>
NA_FN void na_clear(THR na_frag<float>* part) {
  NA_UNROLL for (int f = 0; f < F; f++)
    NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) part[f].e[e] = 0.0f;
}

// ---- Bins: a simdgroup's own sums per relative position, in threadgroup memory (NEAR entries) or,
// where they would not fit (NEAR == 0), in device memory. No atomics, hence the same sums each run.

template <int NEAR>
NA_FN void na_clear_bins(TGP float* sums, DEV float* total, int bins, int lane) {
  for (int i = lane; i < bins; i += 32) {
    if (NEAR > 0) sums[i] = 0.0f;
    else total[i] = 0.0f;
  }
  simdgroup_barrier(NEAR > 0 ? mem_flags::mem_threadgroup : mem_flags::mem_device);
}

// Adds a fragment to its bins (-1: to none), one query after the other: the keys of one query are at
// different distances, so that no two lanes meet.
template <int NEAR>
NA_FN void na_add_to_bins(TGP float* sums, DEV float* total, na_lane me, const THR int* bin,
                          const THR float* value) {
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    for (int row = 0; row < 8; row++) {
      if (row == me.row)
        NA_UNROLL for (int e = h * 2; e < h * 2 + 2; e++) {
          if (bin[e] < 0) continue;
          if (NEAR > 0) sums[bin[e]] += value[e];
          else total[bin[e]] += value[e];
        }
      simdgroup_barrier(NEAR > 0 ? mem_flags::mem_threadgroup : mem_flags::mem_device);
    }
}

template <int NEAR>
NA_FN void na_write_bins(TGP float* sums, DEV float* total, int bins, int lane) {
  if (NEAR > 0)
    for (int i = lane; i < bins; i += 32) total[i] = sums[i];
}
