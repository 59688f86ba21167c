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
