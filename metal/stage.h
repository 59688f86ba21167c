// Filling slabs: tokens come from device to threadgroup memory, the next slab while one is used.

// Those of a slab are numbered row by row, and each thread takes every so manieth.

struct na_rounds {
  int count;  // of tokens
  int size[3];
  int step[3];  // how far a round leads on each axis
};

template <int RANK>
NA_FN na_rounds na_rounds_of(const na_box slab, int stride) {
  na_rounds rounds;
  rounds.count = 1;
  NA_EACH_AXIS_BACK(a) {
    const bool first = a == 3 - RANK;
    rounds.size[a] = slab.high[a] - slab.low[a];
    rounds.count *= rounds.size[a];
    const int rest = first ? 0 : na_small_quotient(stride, rounds.size[a]);
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

// Returns which axes passed their end on to the one before.
template <int RANK>
NA_FN na_point na_next_round(const na_box slab, const na_rounds rounds, THR na_point& token) {
  na_point passed;
  int carry = 0;
  NA_EACH_AXIS_BACK(a) {
    token.at[a] += rounds.step[a] + carry;
    carry = a > 3 - RANK && token.at[a] >= slab.high[a] ? 1 : 0;
    if (carry) token.at[a] -= rounds.size[a];
    passed.at[a] = carry;
  }
  return passed;
}

// The way of the rounds through one array, in steps of 2^HALVINGS elements.
template <typename COUNT, int HALVINGS>
struct na_pace {
  long at;        // where the token's row is, in elements,
  COUNT lead;     // how far a round leads,
  COUNT wrap[3];  // and an axis that passes its end
};

template <int RANK, typename COUNT, int HALVINGS, typename ROWS>
NA_FN void na_begin(THR na_pace<COUNT, HALVINGS>& pace, const TGP ROWS& rows, const na_rounds rounds,
                    const na_point token) {
  pace.at = rows.base;
  pace.lead = 0;
  COUNT before = 0;  // the step of the axis before
  NA_EACH_AXIS(a) {
    const COUNT step = COUNT(rows.step[a] >> HALVINGS);
    pace.at += na_stretch(token.at[a], rows.step[a]);
    pace.lead += rounds.step[a] * step;
    pace.wrap[a] = before - rounds.size[a] * step;
    before = step;
  }
}

template <int RANK, typename COUNT, int HALVINGS>
NA_FN void na_go_on(THR na_pace<COUNT, HALVINGS>& pace, const na_point passed) {
  pace.at += long(pace.lead) * (1 << HALVINGS);
  NA_EACH_AXIS(a) if (passed.at[a]) pace.at += long(pace.wrap[a]) * (1 << HALVINGS);
}

// Copies the rows [D] and [DV] of all tokens of `slab` from device to threadgroup memory, WIDE
// elements at once, and the four marks of a query, unless they are null.
template <int RANK, int D, int DV, int PITCH, int WIDE, typename T>
NA_FN void na_copy_rows(TGP T* keys, const DEV T* key, TGP T* values, const DEV T* value,
                        const DEV float* marks, const TGP na_tour& tour, int n, const na_ahead ahead,
                        uint thread_index, uint threads) {
  constexpr int VECTORS = (D > DV ? D : DV) / WIDE;
  constexpr int SHARE = NA_TEAM < 32 && VECTORS % 2 == 0 ? VECTORS / 2 : VECTORS;
  constexpr int LANES = SHARE < 32 ? SHARE : 32;
  constexpr int TIMES = (VECTORS + LANES - 1) / LANES;
  const int at_once = int(threads) / LANES;  // tokens
  const int first = int(thread_index / LANES);
  const int lane = int(thread_index % LANES);  // it always copies the same columns
  if (first >= at_once) return;
  const na_box slab = tour.slab[n % 3];
  const na_rounds rounds = na_rounds_of<RANK>(slab, at_once);
  na_point token = na_numbered<RANK>(slab, rounds, first);
  na_pace<typename na_unit<WIDE>::count, na_unit<WIDE>::HALVINGS> of_key, of_value;
  na_pace<typename na_unit<4>::count, 0> of_marks;
  na_begin<RANK>(of_key, tour.lines[0], rounds, token);
  na_begin<RANK>(of_value, tour.lines[1], rounds, token);
  na_begin<RANK>(of_marks, tour.rows, rounds, token);
  const long key_step = WIDE > 1 ? 1 : tour.lines[0].channel;  // from a channel to the next
  const long value_step = WIDE > 1 ? 1 : tour.lines[1].channel;
  key += ahead.key;
  value += ahead.value;
  NA_ROLLED for (int at = first; at < rounds.count; at += at_once) {
    for (int i = 0; i < TIMES; i++) {
      const int d = (lane + i * LANES) * WIDE;
      if (d < D) na_copy<WIDE>(keys + na_in_slab<PITCH>(at, d), key + of_key.at + d * key_step);
      if (d < DV) na_copy<WIDE>(values + na_in_slab<PITCH>(at, d), value + of_value.at + d * value_step);
    }
    if (marks && lane == 0)
      na_copy<4>((TGP float*)(keys + na_in_slab<PITCH>(at, 0) + na_marks<T, PITCH>()), marks + (of_marks.at + ahead.row) * 4);
    const na_point passed = na_next_round<RANK>(slab, rounds, token);
    na_go_on<RANK>(of_key, passed);
    if (DV > 0) na_go_on<RANK>(of_value, passed);
    if (marks) na_go_on<RANK>(of_marks, passed);
  }
}

#if NA_PLANE > 0
// The same, row by row, of tokens whose channels follow each other: groups of threads each take rows of
// tokens, or, where there are fewer rows than groups, every so manieth token of one. Half of the
// instructions, but the M1's compiler finds 10 registers more that each lane would keep for it
// (scripts/registers.py).
template <int RANK, int D, int DV, int PITCH, int WIDE, typename T>
NA_FN void na_copy_planes(TGP T* keys, const DEV T* key, TGP T* values, const DEV T* value,
                        const DEV float* marks, const TGP na_tour& tour, int n, const na_ahead ahead,
                        uint thread_index, uint threads) {
  constexpr int VECTORS = (D > DV ? D : DV) / WIDE, LANES = VECTORS < 32 ? VECTORS : 32;
  constexpr int TIMES = (VECTORS + LANES - 1) / LANES;
  const int groups = int(threads) / LANES, group = int(thread_index / LANES);
  const int lane = int(thread_index % LANES);  // it always copies the same columns
  const na_box slab = tour.slab[n % 3];
  const int height = RANK > 1 ? slab.high[1] - slab.low[1] : 1, width = slab.high[2] - slab.low[2];
  const int rows = RANK > 2 ? height * (slab.high[0] - slab.low[0]) : height;
  const int apart = na_max(na_small_quotient(groups, rows), 1);  // groups that share a row
  const int at_once = na_small_quotient(groups, apart), first = na_small_quotient(group, apart);
  if (first >= at_once) return;
  const long key_lead = na_stretch(apart, tour.lines[0].step[2]);
  const long value_lead = na_stretch(apart, tour.lines[1].step[2]);
  const long marks_lead = marks ? apart * 4 * tour.rows.step[2] : 0;
  key += ahead.key + lane * WIDE;
  value += ahead.value + lane * WIDE;
  const int x = group - first * apart, to_value = int(values - keys);
  NA_ROLLED for (int row = first; row < rows; row += at_once) {
    const int z = RANK > 2 ? na_small_quotient(row, height) : 0;
    na_point token = na_size(z, row - z * height, x);
    NA_EACH_AXIS(a) token.at[a] += slab.low[a];
    const DEV T* of_key = key + na_line<RANK>(tour.lines[0], token);
    const DEV T* of_value = value + na_line<RANK>(tour.lines[1], token);
    const DEV float* of_marks = marks ? marks + (na_line<RANK>(tour.rows, token) + ahead.row) * 4 : marks;
    TGP T* to = keys + na_in_slab<PITCH>(row * width + x, lane * WIDE);
    NA_ROLLED for (int at = x; at < width; at += apart) {
      NA_UNROLL for (int i = 0; i < TIMES; i++) {
        const int more = i * LANES * WIDE, d = lane * WIDE + more;
        TGP T* there = to + na_in_slab<PITCH>(0, more);
        if (d < D) na_copy<WIDE>(there, of_key + more);
        if (d < DV) na_copy<WIDE>(there + to_value, of_value + more);
      }
      if (marks && lane == 0) na_copy<4>((TGP float*)(to + na_marks<T, PITCH>()), of_marks);
      to += na_in_slab<PITCH>(apart, 0);
      of_key += key_lead;
      of_value += value_lead;
      of_marks += marks_lead;
    }
  }
}
#endif

// How many elements of rows [D] and [DV] move at once, 16 bytes if they are so long,
template <typename T, int D, int DV>
NA_FN constexpr int na_width() {
  constexpr int ALL = D | DV | 16 / int(sizeof(T));
  return ALL & -ALL;  // the largest power of two that divides all
}

// ... where all rows of an array begin at such an address, and other steps lead to such. 32 bits count
// what moves at once from the first to the last of those in a box.
template <int WIDE, typename T>
NA_FN bool na_moves(const DEV T* array, const na_lines lines, const na_box box, long others) {
  long all = others | lines.base | lines.head, across = 0;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    all |= lines.step[a];
    across += na_stretch(box.high[a], lines.step[a] < 0 ? -lines.step[a] : lines.step[a]);
  }
  return lines.channel == 1 && all % WIDE == 0 && across >> 31 < WIDE && na_aligned(array, WIDE);
}

// Tells a tour where its rows [D] and [DV] come from, of all tokens in a box, and their number in a
// contiguous array, where a kernel wants it.
template <int D, int DV, typename T>
NA_FN void na_come_from(TGP na_tour& tour, const na_box all, const DEV T* key, const na_lines keys,
                        const DEV T* value, const na_lines values, const na_rows rows = {},
                        long others = 0) {
  constexpr int WIDE = na_width<T, D, DV>();
  tour.lines[0] = keys;
  tour.lines[1] = values;
  tour.rows = rows;
  tour.wide = na_moves<WIDE>(key, keys, all, others) && na_moves<WIDE>(value, values, all, others) ? 1 : 0;
}

template <int RANK, int D, int DV, int PITCH, typename T, typename HEADS>
NA_FN void na_stage(TGP T* keys, const DEV T* key, TGP T* values, const DEV T* value,
                    const DEV float* marks, const TGP na_tour& tour, int n, const HEADS heads,
                    uint thread_index, uint threads) {
  const na_ahead ahead = na_ahead_of(heads, n, tour.number, tour.lines[0].head, tour.lines[1].head);
  if (tour.wide)
#if NA_PLANE > 0
    na_copy_planes<RANK, D, DV, PITCH, na_width<T, D, DV>()>(keys, key, values, value, marks, tour, n,
                                                             ahead, thread_index, threads);
#else
    na_copy_rows<RANK, D, DV, PITCH, na_width<T, D, DV>()>(keys, key, values, value, marks, tour,
                                                              n, ahead, thread_index, threads);
#endif
  else
    na_copy_rows<RANK, D, DV, PITCH, 1>(keys, key, values, value, marks, tour, n, ahead,
                                        thread_index, threads);
}

// Has the slab after n on its way, if there is room for two (BUFFERS).
template <int RANK, int D, int DV, int PITCH, int SIZE, int BUFFERS, typename T, typename HEADS>
NA_FN void na_send_next(TGP T* memory, const DEV T* key, const DEV T* value, const DEV float* marks,
                        const TGP na_tour& tour, int n, const HEADS heads, uint thread_index,
                        uint threads) {
  if (BUFFERS == 1 || n + 1 >= na_count(heads) * tour.number) return;
  TGP T* there = memory + (n + 1) % BUFFERS * (DV > 0 ? 2 : 1) * SIZE;
  na_stage<RANK, D, DV, PITCH>(there, key, there + na_second<SIZE>(), value, marks, tour, n + 1,
                               heads, thread_index, threads);
  simdgroup_barrier(mem_flags::mem_none);
}

// Waits until slab n of a tour is in threadgroup memory, and sends for the next one, unless somebody
// else will (LATE). Returns where its rows [D] begin; na_second tells where its rows [DV] do. Of
// `heads` that follow each other each has its tour.
template <int RANK, int D, int DV, int PITCH, int SIZE, int BUFFERS, bool LATE = false, typename T,
          typename HEADS>
NA_FN TGP T* na_next_slab(TGP T* memory, const DEV T* key, const DEV T* value,
                          const DEV float* marks, TGP na_tour& tour, int n, const HEADS heads,
                          uint thread_index, uint threads) {
  const uint index = thread_index + uint(tour.none);
  TGP T* here = memory + n % BUFFERS * (DV > 0 ? 2 : 1) * SIZE;
  if (BUFFERS == 1 || n == 0) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // nobody reads what was there
    na_stage<RANK, D, DV, PITCH>(here, key, here + na_second<SIZE>(), value, marks, tour, n, heads,
                                 index, threads);
  }
  na_copied();
  threadgroup_barrier(mem_flags::mem_threadgroup);  // ... nor the slab before
  if (!LATE)
    na_send_next<RANK, D, DV, PITCH, SIZE, BUFFERS>(memory, key, value, marks, tour, n, heads,
                                                    index, threads);
  if (thread_index == 0)
    tour.slab[(n + 2) % 3] = na_slab_after<RANK>(tour.box, tour.reach, tour.slab[(n + 1) % 3]);
  simdgroup_barrier(mem_flags::mem_none);
  return here;
}

// Both of one head, without marks.
template <int RANK, int D, int DV, int PITCH, int SIZE, int BUFFERS, typename T>
NA_FN void na_send_next(TGP T* memory, const DEV T* key, const DEV T* value, const TGP na_tour& tour,
                        int n, uint thread_index, uint threads) {
  const DEV float* none = 0;
  const na_one_head head = {};
  na_send_next<RANK, D, DV, PITCH, SIZE, BUFFERS>(memory, key, value, none, tour, n, head,
                                                  thread_index, threads);
}
template <int RANK, int D, int DV, int PITCH, int SIZE, int BUFFERS, bool LATE = false, typename T>
NA_FN TGP T* na_next_slab(TGP T* memory, const DEV T* key, const DEV T* value, TGP na_tour& tour,
                          int n, uint thread_index, uint threads) {
  const DEV float* none = 0;
  const na_one_head head = {};
  return na_next_slab<RANK, D, DV, PITCH, SIZE, BUFFERS, LATE>(memory, key, value, none, tour, n, head,
                                                               thread_index, threads);
}

// Zeroes what slabs of rows that end inside a fragment have beyond them.
template <int D, int DV, typename T>
NA_FN void na_clear_slabs(TGP T* memory, int size, uint thread_index, uint threads) {
  constexpr int WIDE = NA_PLANE > 0 ? 16 / int(sizeof(T)) : 1;  // at once
  const na_pack<T, WIDE> zeros = {};
  if (NA_PLANE > 0 || D != na_padded<D>() || DV != na_padded<DV>()) {
    NA_ROLLED for (int i = int(thread_index) * WIDE; i < size; i += int(threads) * WIDE)
      *(TGP na_pack<T, WIDE>*)(memory + i) = zeros;
    simdgroup_barrier(mem_flags::mem_none);  // where no slab comes lanes meet nowhere else
  }
}
