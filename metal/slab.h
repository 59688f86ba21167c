// Slabs: the tokens that a tile wants, in as many pieces as threadgroup memory needs.

// How the tokens of a fragment lie: HIGH rows of them along AXIS, that of columns (walk.h), on which a
// team has QUERIES.
template <int RANK_, int AXIS_, int HIGH, int QUERIES, int PITCH_>
struct na_shape {
  enum { RANK = RANK_, IN_1D = RANK_ == 1 ? 1 : 0 };
  enum { AXIS = AXIS_, OTHER = 1 - AXIS_ };  // in 3-D the other one that is not the innermost
  enum { DEEP = HIGH, COLUMNS = NA_TOKENS / HIGH };
  enum { PITCH = PITCH_ };  // elements from a token of a slab to the next
  // All queries see the same of a column, and no fragments that are computed at once pass its end.
  enum { FLAT = RANK_ > 1 && QUERIES == 1 && HIGH * NA_ROWS == 1 };
};

// How far a slab reaches on an axis of `length` tokens if it may have at most `capacity`: where it is
// cut, into pieces that fragments fill.
NA_FN int na_reach(int length, int capacity, int piece) {
  const int most = na_min(length, capacity);
  return na_max(most < length && most > piece ? most - most % piece : most, 1);
}

// How far a slab of at most `capacity` tokens reaches. Teams of a whole simdgroup have wide fragments:
// it takes all of the inner axes, if it can, and cuts columns. Small teams have long columns: it takes
// all of theirs, and cuts between two.
template <typename SHAPE>
NA_FN na_point na_slab_size(const na_box box, int capacity) {
  constexpr bool SMALL = NA_TEAM < 32;
  na_point size = na_size(1, 1, 1);
  NA_UNROLL for (int i = 0; i < SHAPE::RANK; i++) {
    const int a = !SMALL ? 2 - i : i == 0 ? int(SHAPE::AXIS) : i == 1 ? 2 : int(SHAPE::OTHER);
    const int across = SMALL && a == 2 ? int(SHAPE::COLUMNS) : 1;
    const int piece = a == SHAPE::AXIS ? SHAPE::DEEP * NA_ROWS : across;
    size.at[a] = na_reach(box.high[a] - box.low[a], capacity, piece);
    capacity = na_small_quotient(capacity, size.at[a]);
  }
  return size;
}

// What is the same for all threads of a tile, where the slabs are that it wants and where they come from:
// in threadgroup memory, since in registers each of them would keep it. One of them writes it.
struct na_tour {
  na_box box;
  na_point reach;  // of a slab
  na_rows rows;
  int none;        // 0, but no compiler knows: what is computed with it is not kept from slab to slab
};

template <typename SHAPE>
NA_FN na_tour na_tour_of(const na_box box, const na_rows rows, int capacity) {
  na_tour tour;
  tour.box = box;
  tour.reach = na_slab_size<SHAPE>(box, capacity);
  tour.rows = rows;
  tour.none = 0;
  return tour;
}

// Rows that are hardly ever asked for: read when they are.
NA_FN na_rows na_rows_again(const volatile TGP na_tour& tour) {
  na_rows rows;
  rows.base = tour.rows.base;
  NA_UNROLL for (int a = 0; a < 3; a++) rows.step[a] = tour.rows.step[a];
  return rows;
}

NA_FN na_rows na_of_head(na_rows rows, int head) {
  rows.base += head;
  return rows;
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

// The slabs of a tour, one after the other; an axis that the problem has not is passed once.
#define NA_EACH_SLAB(tour)                                                                          \
  for (int z = RANK > 2 ? tour.box.low[0] : 0; z < (RANK > 2 ? tour.box.high[0] : 1);               \
       z += RANK > 2 ? tour.reach.at[0] : 1)                                                        \
    for (int y = RANK > 1 ? tour.box.low[1] : 0; y < (RANK > 1 ? tour.box.high[1] : 1);             \
         y += RANK > 1 ? tour.reach.at[1] : 1)                                                      \
      for (int x = tour.box.low[2]; x < tour.box.high[2]; x += tour.reach.at[2])

// ---- Filling a slab. Its tokens are numbered row by row, and each thread takes every so manieth.

struct na_rounds {
  int count;    // of tokens
  int size[3];
  int step[3];  // how far a round leads on each axis
};

template <int RANK>
NA_FN na_rounds na_rounds_of(const na_box slab, int stride) {
  na_rounds rounds;
  rounds.count = 1;
  NA_EACH_AXIS_BACK(a) {
    rounds.size[a] = slab.high[a] - slab.low[a];
    rounds.count *= rounds.size[a];
    const int rest = a > 3 - RANK ? na_small_quotient(stride, rounds.size[a]) : 0;
    rounds.step[a] = stride - rest * rounds.size[a];
    stride = rest;
  }
  return rounds;
}

template <int RANK>
NA_FN na_point na_numbered(const na_box slab, const na_rounds rounds, int i) {
  na_point token;
  NA_EACH_AXIS_BACK(a) {
    const int rest = a > 3 - RANK ? na_small_quotient(i, rounds.size[a]) : 0;
    token.at[a] = slab.low[a] + i - rest * rounds.size[a];
    i = rest;
  }
  return token;
}

template <int RANK>
NA_FN void na_next_round(const na_box slab, const na_rounds rounds, THR na_point& token) {
  int carry = 0;
  NA_EACH_AXIS_BACK(a) {
    token.at[a] += rounds.step[a] + carry;
    carry = a > 3 - RANK && token.at[a] >= slab.high[a] ? 1 : 0;
    if (carry) token.at[a] -= rounds.size[a];
  }
}

// A slab row of D elements, rounded up to whole fragments and padded against bank conflicts.
template <typename T, int D>
NA_FN constexpr int na_pitch() {
  return (D + 7) / 8 * 8 + NA_PAD_BYTES / int(sizeof(T));
}

// Copies the rows [D] and [DV] of all tokens of `slab` from device to threadgroup memory, WIDE
// elements at once. The four marks of a query, unless they are null, follow its row.
template <int RANK, int D, int DV, int PITCH, int WIDE, typename T>
NA_FN void na_copy_rows(TGP T* keys, const DEV T* key, TGP T* values, const DEV T* value,
                        const DEV float* marks, const na_rows rows, const na_box slab,
                        uint thread_index, uint threads) {
  constexpr int VECTORS = (D > DV ? D : DV) / WIDE;
  constexpr int SHARE = NA_TEAM < 32 && VECTORS % 2 == 0 ? VECTORS / 2 : VECTORS;
  constexpr int LANES = SHARE < 32 ? SHARE : 32;
  constexpr int TIMES = (VECTORS + LANES - 1) / LANES;
  const int at_once = int(threads) / LANES;  // tokens
  const int first = int(thread_index / LANES);
  const int lane = int(thread_index % LANES);  // it always copies the same columns
  if (first >= at_once) return;
  const na_rounds rounds = na_rounds_of<RANK>(slab, at_once);
  na_point token = na_numbered<RANK>(slab, rounds, first);
  NA_ROLLED for (int n = first; n < rounds.count; n += at_once) {
    const long row = na_row<RANK>(rows, token);
    for (int i = 0; i < TIMES; i++) {
      const int d = (lane + i * LANES) * WIDE;
      if (d < D) na_copy<WIDE>(keys + n * PITCH + d, key + row * D + d);
      if (d < DV) na_copy<WIDE>(values + n * PITCH + d, value + row * DV + d);
    }
    if (marks && lane == 0)
      *(TGP na_pack<float, 4>*)(keys + n * PITCH + (D + 7) / 8 * 8) =
          *(const DEV na_pack<float, 4>*)(marks + row * 4);
    na_next_round<RANK>(slab, rounds, token);
  }
}

// The same, 16 bytes at once where rows are so long and begin at such an address: an array may be
// a slice of another.
template <int RANK, int D, int DV, int PITCH, typename T>
NA_FN void na_stage(TGP T* keys, const DEV T* key, TGP T* values, const DEV T* value,
                    const DEV float* marks, const na_rows rows, const na_box slab,
                    uint thread_index, uint threads) {
  constexpr int MOST = 16 / int(sizeof(T)), BOTH = D | DV | MOST;
  constexpr int WIDE = BOTH & -BOTH;  // the largest power of two that divides all
  if (na_aligned(key, WIDE) && na_aligned(value, WIDE))
    na_copy_rows<RANK, D, DV, PITCH, WIDE>(keys, key, values, value, marks, rows, slab,
                                           thread_index, threads);
  else
    na_copy_rows<RANK, D, DV, PITCH, 1>(keys, key, values, value, marks, rows, slab,
                                        thread_index, threads);
  na_copied();
}

// Without marks.
template <int RANK, int D, int DV, int PITCH, typename T>
NA_FN void na_stage(TGP T* keys, const DEV T* key, TGP T* values, const DEV T* value,
                    const na_rows rows, const na_box slab, uint thread_index, uint threads) {
  const DEV float* none = 0;
  na_stage<RANK, D, DV, PITCH>(keys, key, values, value, none, rows, slab, thread_index, threads);
}

// One array alone.
template <int RANK, int D, int PITCH, typename T>
NA_FN void na_stage(TGP T* to, const DEV T* from, const na_rows rows, const na_box slab,
                    uint thread_index, uint threads) {
  na_stage<RANK, D, 0, PITCH>(to, from, to, from, rows, slab, thread_index, threads);
}

// Zeroes the elements between D and the end of its last fragment in every row of a slab.
template <int D, int PITCH, typename T>
NA_FN void na_clear_tails(TGP T* slab, int rows, uint thread_index, uint threads) {
  constexpr int TAIL = (8 - D % 8) % 8;
  if (TAIL > 0)
    NA_ROLLED for (int i = int(thread_index); i < rows * TAIL; i += int(threads))
      slab[i / (TAIL + !TAIL) * PITCH + D + i % (TAIL + !TAIL)] = T(0.0f);
}
