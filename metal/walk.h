// A simdgroup's walk over a slab, a fragment of eight tokens at a time. The eight lie in E1 rows.
// Fragments that differ only on the inner axis (y, in 1-D x) form a column; whatever does not change
// along a column is found out once.

template <int RANK_, int E1>
struct na_eight {
  enum { RANK = RANK_, ROWS = E1, COLUMNS = 8 / E1, IN_1D = RANK_ == 1 ? 1 : 0 };
  enum { INNER = RANK_ > 1 ? 1 : 2, DEEP = RANK_ > 1 ? E1 : 8 };
};

struct na_walk {
  na_box box;    // the tokens that a simdgroup wants and the slab has
  int depth;     // of a column
  int pitch[3];  // slab rows from a token to the next
  int start;     // slab row of the token 0, 0, 0
};

template <typename EIGHT>
NA_FN na_walk na_walk_over(const na_box wanted, const na_box slab) {
  constexpr int RANK = EIGHT::RANK;
  na_walk walk;
  int pitch = 1;
  walk.start = 0;
  NA_EACH_AXIS_BACK(a) {
    walk.box.low[a] = na_max(wanted.low[a], slab.low[a]);
    walk.box.high[a] = na_max(na_min(wanted.high[a], slab.high[a]), walk.box.low[a]);
    walk.pitch[a] = pitch;
    walk.start -= slab.low[a] * pitch;
    pitch *= slab.high[a] - slab.low[a];
  }
  walk.depth = walk.box.high[EIGHT::INNER] - walk.box.low[EIGHT::INNER];
  return walk;
}

struct na_column {
  na_point token;           // the left of my two tokens, in the first fragment
  na_picked at;             // slab rows of my tokens there,
  na_picked last;           // and of the last ones below them
  int from[NA_ROWS];        // how far the left token lies behind the first in sight of each row,
  uint reach[2 * NA_ROWS];  // and how many are in sight; none if another axis is out of it
};

#define NA_EACH_COLUMN(walk)                                                                \
  for (int cz = RANK > 2 ? walk.box.low[0] : 0; cz < (RANK > 2 ? walk.box.high[0] : 1); cz++) \
    for (int cx = RANK > 1 ? walk.box.low[2] : 0; cx < (RANK > 1 ? walk.box.high[2] : 1);   \
         cx += EIGHT::COLUMNS)

template <typename EIGHT>
NA_FN na_column na_column_at(const na_walk walk, const THR na_sight* sight, int z, int x,
                             na_lane me) {
  constexpr int RANK = EIGHT::RANK, INNER = EIGHT::INNER;
  const na_point one = na_size(1, 1, 1);
  const na_point left = na_place<EIGHT::ROWS, EIGHT::COLUMNS>(me.column, one);
  const na_point mine = na_place<EIGHT::ROWS, EIGHT::COLUMNS>(me.token, one);
  na_point corner = na_size(z, 0, x);
  corner.at[INNER] = walk.box.low[INNER];
  na_column column;
  bool inside[2 * NA_ROWS];
  NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) inside[e] = true;
  column.last.mine = column.last.column[0] = column.last.column[1] = walk.start;
  NA_EACH_AXIS(a) {
    const int token = corner.at[a] + left.at[a], last = walk.box.high[a] - 1;
    column.token.at[a] = token;
    column.last.mine +=
        (a == INNER ? last : na_min(corner.at[a] + mine.at[a], last)) * walk.pitch[a];
    NA_UNROLL for (int e = 0; e < 2; e++)
      column.last.column[e] +=
          (a == INNER ? last : na_min(token + (a == 2 ? e : 0), last)) * walk.pitch[a];
    NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++)
      if (a != INNER)
        inside[e] = inside[e] && uint(token + (a == 2 ? e % 2 : 0) - sight[e / 2].first[a]) <
                                     uint(sight[e / 2].count[a]);
  }
  const int below = walk.depth - 1;  // rows of tokens from the first to the last
  column.at.mine = column.last.mine - (below - mine.at[INNER]) * walk.pitch[INNER];
  NA_UNROLL for (int e = 0; e < 2; e++)
    column.at.column[e] = column.last.column[e] -
                          (below - left.at[INNER] - e * EIGHT::IN_1D) * walk.pitch[INNER];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    column.from[h] = column.token.at[INNER] - sight[h].first[INNER];
  NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++)
    column.reach[e] = inside[e] ? uint(sight[e / 2].count[INNER]) : 0u;
  return column;
}

// Where the tokens of the fragment lie that begins i tokens down a column. Those beyond the end stay
// with the last: what is read there must be numbers.
template <typename EIGHT>
NA_FN na_picked na_pick(const na_walk walk, const na_column column, int i) {
  const int down = i * walk.pitch[EIGHT::INNER];
  na_picked at;
  at.mine = na_min(column.at.mine + down, column.last.mine);
  at.column[0] = na_min(column.at.column[0] + down, column.last.column[0]);
  at.column[1] = EIGHT::IN_1D ? na_min(column.at.column[1] + down, column.last.column[1])
                              : at.column[0] + column.last.column[1] - column.last.column[0];
  return at;
}

// Whether row e / 2 and token e % 2 of mine see each other.
template <typename EIGHT>
NA_FN bool na_in_sight(const na_column column, int i, int e) {
  return uint(column.from[e / 2] + i + e % 2 * EIGHT::IN_1D) < column.reach[e];
}

template <typename EIGHT>
NA_FN na_point na_token(const na_column column, int i, int e) {
  na_point token = column.token;
  token.at[EIGHT::INNER] += i;
  token.at[2] += e % 2;
  return token;
}

// na_entry of na_token.
template <typename EIGHT>
NA_FN int na_entry_at(const na_table table, const na_column column, int i, int e) {
  return na_entry<EIGHT::RANK>(table, column.token) + i * table.pitch[EIGHT::INNER] +
         e % 2 * table.pitch[2];
}
