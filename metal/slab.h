// Slabs: the tokens that a tile wants, in as many pieces as threadgroup memory needs.

// How the tokens of a fragment lie: HIGH rows of them along AXIS, that of columns (walk.h), on which a
// team has QUERIES.
template <int RANK_, int AXIS_, int HIGH, int QUERIES, int PITCH_>
struct na_shape {
  enum { RANK = RANK_, IN_1D = RANK_ == 1 ? 1 : 0 };
  enum { AXIS = AXIS_, OTHER = 1 - AXIS_ };  // in 3-D the other one that is not the innermost
  enum { DEEP = HIGH, COLUMNS = NA_TOKENS / HIGH };
  enum { PITCH = NA_PLANE > 0 ? 8 : PITCH_ };  // elements from a token of a slab to the next
  enum { PASSES = HIGH > 1 || NA_PARTS > 1 };  // fragments may pass the end of a column
  enum { FLAT = RANK_ > 1 && QUERIES == 1 && !PASSES };  // all queries see the same of it
};

// How far a slab reaches on an axis of `length` tokens if it may have at most `capacity`: where it is
// cut, into pieces that fragments fill.
NA_FN int na_reach(int length, int capacity, int piece) {
  const int most = na_min(length, capacity);
  return na_max(most < length && most > piece ? most - most % piece : most, 1);
}

// What is the same for all threads of a tile, which slabs it wants and where they come from: in
// threadgroup memory, since in registers each of them would keep it. The first of them writes which
// slabs, and the last one, of another simdgroup where there is one, at the same time where from.
struct na_tour {
  na_box box;      // what all slabs make up, x running fastest,
  na_point reach;  // all but the last on each axis so long
  int number;      // of slabs
  na_box slab[3];  // the last, this and the next
  na_lines lines[2];  // of the arrays that they come from,
  na_rows rows;       // and their number in a contiguous one, where a kernel wants it
  na_own own;         // where the tile's own rows lie
  na_seen seen[NA_KEEPS_SEEN ? NA_THREADS / NA_TEAM_THREADS : 1];  // by each team
  int depth[NA_PARTS > 1 ? NA_THREADS / NA_TEAM_THREADS : 1];  // of each team's walk,
  int width[NA_PARTS > 1 ? NA_THREADS / NA_TEAM_THREADS : 1];  // where they keep pace (parts.h)
  int wide;           // whether they move 16 bytes at once
  int none;        // 0, but no compiler knows: what is computed with it is not kept from slab to slab
};
static_assert(sizeof(na_tour) <= 384 + sizeof(na_seen) * (NA_KEEPS_SEEN ? NA_THREADS / NA_TEAM_THREADS : 1),
              "ops/gpu/tile.py counts on it");

// What a team sees is asked for once a slab. Where lanes have no registers for it, it is kept in
// threadgroup memory.
NA_FN void na_keep_seen(TGP na_tour& tour, const na_seen seen, uint thread_index) {
  if (NA_KEEPS_SEEN && thread_index % NA_TEAM_THREADS == 0)
    tour.seen[thread_index / NA_TEAM_THREADS] = seen;
  if (NA_KEEPS_SEEN) simdgroup_barrier(mem_flags::mem_none);  // there may be no slab, and none of its barriers
}
NA_FN na_seen na_seen_again(const TGP na_tour& tour, const na_seen seen, uint thread_index) {
  if (!NA_KEEPS_SEEN) return seen;
  return tour.seen[thread_index / NA_TEAM_THREADS];
}

// The slab after another; after the last, the first.
template <int RANK>
NA_FN na_box na_slab_after(const na_box all, const na_point reach, const na_box slab) {
  na_box next;
  bool carry = true;
  NA_EACH_AXIS_BACK(a) {
    const int low = slab.low[a] + (carry ? reach.at[a] : 0);
    carry = low >= all.high[a];
    next.low[a] = carry ? all.low[a] : low;
    next.high[a] = na_min(next.low[a] + reach.at[a], all.high[a]);
  }
  return next;
}

// Slabs of at most `capacity` tokens, and on each axis of as many as the parameters allow. Teams of a
// whole simdgroup have wide fragments: a slab takes all of the inner axes, if it may, and cuts
// columns. Small teams have long columns: it takes all of theirs, and cuts between two.
template <typename SHAPE>
NA_FN void na_begin_tour(TGP na_tour& tour, const DEV int* p, const na_box box, int capacity) {
  constexpr bool SMALL = NA_TEAM < 32;
  na_box first = box;
  na_point most = na_size(1, 1, 1);
  int number = 1;
  NA_UNROLL for (int i = 0; i < SHAPE::RANK; i++) {
    const int a = !SMALL ? 2 - i : i == 0 ? int(SHAPE::AXIS) : i == 1 ? 2 : int(SHAPE::OTHER);
    const int across = SMALL && a == 2 ? int(SHAPE::COLUMNS) : 1;
    const int piece = a == SHAPE::AXIS ? int(SHAPE::DEEP) : across;
    const int length = box.high[a] - box.low[a];
    const int reach = na_reach(length, na_min(capacity, na_axis_of(p, a)[NA_REACH]), piece);
    most.at[a] = reach;
    first.high[a] = na_min(box.low[a] + reach, box.high[a]);
    number *= na_pieces(length, reach);
    capacity = na_small_quotient(capacity, reach);
  }
  tour.box = box;
  tour.reach = most;
  tour.number = number;
  tour.slab[0] = first;
  tour.slab[1] = na_slab_after<SHAPE::RANK>(box, most, first);
  tour.none = 0;
}

// Rows that are hardly ever asked for, `head` heads on: read when they are.
NA_FN na_rows na_rows_again(const volatile TGP na_tour& tour, int head) {
  na_rows rows;
  rows.base = tour.rows.base + head;
  NA_UNROLL for (int a = 0; a < 3; a++) rows.step[a] = tour.rows.step[a];
  return rows;
}
NA_FN na_lines na_lines_again(const volatile TGP na_tour& tour, int head) {
  na_lines lines;
  lines.head = tour.lines[0].head;
  lines.base = tour.lines[0].base + head * lines.head;
  lines.channel = tour.lines[0].channel;
  NA_UNROLL for (int a = 0; a < 3; a++) lines.step[a] = tour.lines[0].step[a];
  return lines;
}

// 0: what is computed with it is computed then, not kept from before.
NA_FN uint na_again(const volatile TGP na_tour& tour) { return uint(tour.none); }

// A slab row of D elements, rounded up to whole fragments and padded against bank conflicts.
template <typename T, int D>
NA_FN constexpr int na_pitch() {
  return na_padded<D>() + NA_PAD_BYTES / int(sizeof(T));
}
// Where a token's channel d lies: in its row, or, with NA_PLANE, eight channels of all tokens after the
// eight before them, which is how wgmma wants them.
template <int PITCH>
NA_FN constexpr int na_in_slab(int token, int d) {
  return NA_PLANE > 0 ? (d / 8 * NA_PLANE + token) * 8 + d % 8 : token * PITCH + d;
}
// How far the rows [DV] of a slab lie behind its rows [D], which have SIZE elements with their padding.
// A fragment may end up to 63 tokens beyond its slab: in planes it reads there what follows, which
// must be numbers. After the last plane of [D] come those of [DV], and after these a plane of zeros.
template <int SIZE>
NA_FN constexpr int na_second() {
  return SIZE - NA_PLANE * 8;
}
// Where the four marks of a query lie in its row: in that padding; with NA_PLANE at a slab's very end.
template <typename T, int PITCH>
NA_FN constexpr int na_marks() {
  return NA_PLANE > 0 ? (2 * PITCH - 8) * NA_PLANE : PITCH - NA_PAD_BYTES / int(sizeof(T));
}
