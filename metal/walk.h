// A team's walk over a slab, a fragment of tokens at a time. Fragments that differ only on
// one axis (in 3-D z or y, in 2-D y, in 1-D x) form a column; whatever does not change along a column
// is found out once. Across the columns tokens are numbered row by row (in 2-D there is one row), and
// a fragment has DEEP times COLUMNS neighbors.

struct na_walk {
  na_box box;    // the tokens that a team wants and the slab has
  int depth;     // of a column
  int width;     // tokens across,
  int length;    // and how many of them are in a row
  int first;     // where the first token lies in the slab,
  int down;      // how far the one below it is,
  int gap;       // and how much farther than its predecessor the first of a row across
};

template <typename SHAPE>
NA_FN na_walk na_walk_over(const na_box wanted, const na_box slab) {
  constexpr int RANK = SHAPE::RANK, AXIS = SHAPE::AXIS;
  na_walk walk;
  int size[3], pitch = SHAPE::PITCH;
  walk.first = walk.gap = 0;
  NA_EACH_AXIS_BACK(a) {
    walk.box.low[a] = na_max(wanted.low[a], slab.low[a]);
    walk.box.high[a] = na_min(wanted.high[a], slab.high[a]);
    size[a] = na_max(walk.box.high[a] - walk.box.low[a], 0);
    walk.first += (walk.box.low[a] - slab.low[a]) * pitch;
    if (a == AXIS) walk.down = pitch;
    if (RANK > 2 && a == SHAPE::OTHER) walk.gap = pitch - size[2] * SHAPE::PITCH;
    pitch *= slab.high[a] - slab.low[a];
  }
  walk.depth = size[AXIS];
  walk.length = RANK > 1 ? size[2] : 1;
  walk.width = walk.depth > 0 ? walk.length * (RANK > 2 ? size[SHAPE::OTHER] : 1) : 0;
  return walk;
}

#define NA_EACH_COLUMN(walk) for (int across = 0; across < walk.width; across += SHAPE::COLUMNS)

struct na_column {
  na_point token[2];          // my two tokens in the first fragment,
  na_picked at;               // where they lie, and the one that I look up,
  na_picked last;             // and the last ones below them
  int from[NA_ROWS];          // how far the left token lies behind the first in sight of each row,
  uint count[NA_ROWS];        // how many are in sight,
  float hidden[2 * NA_ROWS];  // and what masks a logit: 0, or NA_MASKED if another axis does
};

struct na_spot {
  na_point token;
  int at;  // in the slab
};

// Row `row` of the tokens number `across`. Beyond the end it is the last: what is read there must be
// numbers.
template <typename SHAPE>
NA_FN na_spot na_spot_at(const na_walk walk, int row, int across) {
  constexpr int RANK = SHAPE::RANK;
  const int number = na_min(across, walk.width - 1);
  const int y = RANK > 2 ? na_small_quotient(number, walk.length) : 0;
  na_spot spot;
  NA_EACH_AXIS(a) spot.token.at[a] = walk.box.low[a];
  spot.token.at[SHAPE::AXIS] += row;
  if (RANK > 2) spot.token.at[SHAPE::OTHER] += y;
  if (RANK > 1) spot.token.at[2] += number - y * walk.length;
  spot.at = walk.first + row * walk.down;
  if (RANK > 2) spot.at += y * walk.gap;
  if (RANK > 1) spot.at += number * SHAPE::PITCH;
  return spot;
}

template <typename SHAPE, typename ROW>
NA_FN na_column na_column_at(const na_walk walk, const THR ROW* mine, int across, na_lane me) {
  constexpr int RANK = SHAPE::RANK, AXIS = SHAPE::AXIS, COLUMNS = SHAPE::COLUMNS;
  const int row = me.column / COLUMNS, left = across + me.column % COLUMNS;
  const int my_row = me.token / COLUMNS, below = (walk.depth - 1) * walk.down;
  na_column column;
  column.at.mine = na_spot_at<SHAPE>(walk, my_row, across + me.token % COLUMNS).at;
  column.last.mine = column.at.mine + below - my_row * walk.down;
  NA_UNROLL for (int e = 0; e < 2; e++) {
    const int one_down = e * SHAPE::IN_1D, token_row = row + one_down;
    const na_spot spot = na_spot_at<SHAPE>(walk, token_row, left + e - one_down);
    column.token[e] = spot.token;
    column.at.column[e] = spot.at;
    column.last.column[e] = spot.at + below - token_row * walk.down;
  }
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    const na_sight sight = mine[h].sight;
    const int ahead = walk.box.high[AXIS] - sight.first[AXIS];
    column.from[h] = column.token[0].at[AXIS] - sight.first[AXIS];
    column.count[h] = uint(sight.count[AXIS]);
    if (SHAPE::DEEP * NA_ROWS > 1)  // fragments may pass the end, sight must not
      column.count[h] = uint(na_clamp(ahead, 0, sight.count[AXIS]));
    NA_UNROLL for (int e = 0; e < 2; e++) {
      bool inside = left + e < walk.width || SHAPE::IN_1D;
      NA_EACH_AXIS(a)
        if (a != AXIS)
          inside = inside && uint(column.token[e].at[a] - sight.first[a]) < uint(sight.count[a]);
      column.hidden[2 * h + e] = inside ? 0.0f : NA_MASKED;
    }
  }
  return column;
}

// Where the tokens of the fragment lie that begins i tokens down a column, the first of COUNT that
// are picked at once.
template <typename SHAPE, int COUNT = 1>
NA_FN na_picked na_pick(const na_walk walk, const na_column column, int i) {
  const int down = i * walk.down;
  na_picked at;
  at.mine = column.at.mine + down;
  NA_UNROLL for (int e = 0; e < 2; e++) at.column[e] = column.at.column[e] + down;
  if (SHAPE::DEEP * COUNT > 1) {
    at.mine = na_min(at.mine, column.last.mine);
    NA_UNROLL for (int e = 0; e < 2; e++)
      at.column[e] = na_min(at.column[e], column.last.column[e]);
  }
  na_share(at);
  return at;
}

// What to add to a logit, of row e / 2 and token e % 2 of mine: x, which is column.hidden[e] and more,
// or NA_MASKED if the column's axis hides one from the other.
template <typename SHAPE>
NA_FN float na_mask(const na_column column, int i, int e, float x) {
  const int from = column.from[e / 2] + i + e % 2 * SHAPE::IN_1D;
  return SHAPE::FLAT || uint(from) < column.count[e / 2] ? x : NA_MASKED;
}

template <typename SHAPE>
NA_FN bool na_in_sight(const na_column column, int i, int e) {
  return na_mask<SHAPE>(column, i, e, column.hidden[e]) == 0.0f;
}

template <typename SHAPE>
NA_FN na_point na_token(const na_column column, int i, int e) {
  na_point token = column.token[e % 2];
  token.at[SHAPE::AXIS] += i;
  return token;
}

// na_entry of na_token.
template <typename SHAPE>
NA_FN int na_entry_at(const na_table table, const na_column column, int i, int e) {
  return na_entry<SHAPE::RANK>(table, column.token[e % 2]) + i * table.pitch[SHAPE::AXIS];
}
