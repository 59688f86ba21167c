// The rows of a team, one by one: where they lie in a tile, and what each sees.

// A tile is a box of teams, each with a box of rows.

// A thread's lane, in its part of its team.
template <typename T>
NA_FN na_lane na_lane_in_team(uint thread_index) {
  na_lane me = na_lane_of<T>(int(thread_index % NA_TEAM));
  me.part = int(thread_index / NA_TEAM % NA_PARTS);
  return me;
}

// Teams of a threadgroup on each axis.
template <int RANK>
NA_FN na_point na_teams(const DEV int* p) {
  na_point teams = na_size(1, 1, 1);
  NA_EACH_AXIS(a) teams.at[a] = na_axis_of(p, a)[NA_TEAMS];
  return teams;
}

// Where row `i` of a team lies in it.
template <int N1, int N2>
NA_FN na_point na_place(uint i) {
  return na_size(int(i / (N1 * N2)), int(i / N2 % N1), int(i % N2));
}

// Where team `i` begins. The teams that share a simdgroup lie along AXIS, that of the columns
// (walk.h): then they walk at the same pace.
template <int AXIS>
NA_FN na_point na_team_place(uint i, const na_point teams, const na_point scale) {
  constexpr int FIRST = AXIS == 0 ? 0 : 1, SECOND = 1 - FIRST;
  const int rest = na_small_quotient(int(i), teams.at[FIRST]);
  na_point place;
  place.at[2] = na_small_quotient(rest, teams.at[SECOND]);
  place.at[FIRST] = int(i) - rest * teams.at[FIRST];
  place.at[SECOND] = rest - place.at[2] * teams.at[SECOND];
  return na_times(place, scale);
}

// The keys that a query sees, or the queries that see a key.
struct na_sight {
  int first[3];
  int count[3];
};

// One of a team's rows: a query, or a key in a tile of KEYS.
struct na_mine {
  long row;        // of the array that it is stored in, if it is
  na_point rank;   // in its class: t of a query
  na_point token;  // where it lies on each axis of its arrays
  na_sight sight;  // what it sees, or is seen by; nothing if it is outside the sample
  int bin;         // of the key 0, 0, 0, or of the query 0, 0, 0
  int slot;        // of that key
  bool stored;     // it is an entry of the padded array
  bool live;       // ... and of this sample
};

template <int RANK, bool KEYS>
NA_FN na_mine na_mine_at(const DEV int* p, const na_tile tile, const na_rows rows,
                         const na_point corner, const na_point place) {
  const na_table slots = na_table_of<RANK, false>(p), bins = na_table_of<RANK, true>(p);
  na_mine mine;
  mine.stored = mine.live = true;
  mine.bin = mine.slot = 0;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    const int at = tile.start[a] + corner.at[a] + place.at[a];
    const na_span seen = na_sees<KEYS>(axis, at);
    mine.stored = mine.stored && at < axis.padded;
    mine.live = mine.live && at < (KEYS ? axis.keys : axis.queries);
    mine.rank.at[a] = at;
    mine.token.at[a] = KEYS ? axis.key0 + at * axis.key_step : axis.out0 + at * axis.out_step;
    mine.sight.first[a] = seen.first;
    mine.sight.count[a] = KEYS ? na_max(seen.last - seen.first, 0) : seen.last - seen.first;
    const int behind = KEYS ? at : -at * axis.rank_step;
    mine.bin += (axis.window - 1 - axis.rank0 + behind) * bins.pitch[a];
    mine.slot -= seen.first * slots.pitch[a];
  }
  if (!mine.live) mine.sight.count[2] = 0;
  mine.row = na_row<RANK>(rows, mine.rank);
  return mine;
}

// All that a lane looks after.
template <int RANK, bool KEYS, int N1, int N2>
NA_FN void na_find_mine(THR na_mine* mine, const DEV int* p, const na_tile tile, const na_rows rows,
                        const na_point corner, na_lane me) {
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    mine[h] = na_mine_at<RANK, KEYS>(p, tile, rows, corner, na_place<N1, N2>(h * 8 + me.row));
}

// Whether every slot of a query has a key.
template <int RANK>
NA_FN bool na_whole(const na_mine query, int volume) {
  int count = 1;
  NA_EACH_AXIS(a) count *= query.sight.count[a];
  return count == volume;
}

// Where a tile's own rows lie. A lane finds its rows again when it stores them: kept in registers, all
// that tells where they are would lie beside its sums through the whole walk.
struct na_own {
  na_rows rows;
  int batch, head;
  int start[3];
  int padded[3];  // how many the arrays have on each axis,
  int live[3];    // and this sample
  int token[3];   // where the first of the class lies,
  int step[3];    // and from one to the next
};

template <int RANK, bool KEYS>
NA_FN na_own na_own_of(const na_tile tile, const na_rows rows, int head) {
  na_own own;
  own.rows = rows;
  own.batch = tile.batch;
  own.head = head;
  NA_UNROLL for (int a = 0; a < 3; a++) own.start[a] = own.padded[a] = own.live[a] = 0;
  NA_UNROLL for (int a = 0; a < 3; a++) own.token[a] = own.step[a] = 0;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    own.start[a] = tile.start[a];
    own.padded[a] = axis.padded;
    own.live[a] = KEYS ? axis.keys : axis.queries;
    own.token[a] = KEYS ? axis.key0 : axis.out0;
    own.step[a] = KEYS ? axis.key_step : axis.out_step;
  }
  return own;
}

// What na_mine tells of a row's place.
struct na_found {
  long row;
  na_point token;
  bool stored;
  bool live;
};

// Row h of those that a lane looks after. Before the walk they were found from the same: `p` and
// `thread_index` are such that no compiler knows (na_again in slab.h).
template <int RANK, int AXIS, int N0, int N1, int N2>
NA_FN na_found na_find_again(const volatile TGP na_own& own, const DEV int* p, uint thread_index,
                             na_lane me, int h) {
  const uint team = thread_index / NA_TEAM_THREADS;
  const na_point corner = na_team_place<AXIS>(team, na_teams<RANK>(p), na_size(N0, N1, N2));
  const na_point place = na_place<N1, N2>(h * 8 + me.row);
  na_found found;
  found.stored = found.live = true;
  found.row = own.rows.base;
  NA_EACH_AXIS(a) {
    const int at = own.start[a] + corner.at[a] + place.at[a];
    found.stored = at < own.padded[a] && found.stored;  // all lanes read
    found.live = at < own.live[a] && found.live;
    found.token.at[a] = own.token[a] + at * own.step[a];
    found.row += na_product(at, own.rows.step[a]);
  }
  return found;
}

// The same from registers, on cores whose lanes have enough of them (NA_KEEPS_MINE).
template <int RANK, int AXIS, int N0, int N1, int N2>
NA_FN na_found na_found_of(const na_mine mine, const volatile TGP na_own& own, const DEV int* p,
                           uint thread_index, na_lane me, int h) {
  if (!NA_KEEPS_MINE) return na_find_again<RANK, AXIS, N0, N1, N2>(own, p, thread_index, me, h);
  const na_found found = {mine.row, mine.token, mine.stored, mine.live};
  return found;
}

// Of a key that was found, the query of the same token, if `stride` keeps that.
template <int RANK, bool PLAIN>
NA_FN na_found na_query_of(na_found found, const DEV int* p) {
  NA_EACH_AXIS(a) {
    const int stride = na_option<PLAIN>(na_axis_of(p, a), NA_STRIDE), token = found.token.at[a];
    found.token.at[a] = na_quotient(token, stride);
    found.live = found.token.at[a] * stride == token && found.live;
  }
  return found;
}

// Where it begins in an array of such rows. `again` is 0, for the strides as for all else.
template <int RANK, typename STRIDES>
NA_FN long na_line_again(const STRIDES strides, const volatile TGP na_own& own, const na_found found,
                         uint again) {
  long line = own.batch * strides[again] + own.head * strides[again + RANK + 1];
  NA_EACH_AXIS(a) line += found.token.at[a] * strides[again + RANK - 2 + a];
  return line;
}
