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
  int to_depth;  // how far it goes: as far as it has tokens, or as another team has (parts.h)
  int to_width;
  bool open;     // every row of the team sees every token of every fragment: nothing is masked. Not
                 // said to small teams: those of a simdgroup branch alike
};

// A row across that has `size` tokens: fragments of NA_PLANE begin anew in each.
template <typename SHAPE>
NA_FN int na_row_length(int size) {
  constexpr int PIECE = NA_PLANE > 0 && SHAPE::RANK > 2 ? SHAPE::COLUMNS : 1;
  return int(uint(size + PIECE - 1) / PIECE) * PIECE;
}

template <typename SHAPE>
NA_FN na_walk na_walk_over(const na_seen seen, const na_box slab) {
  constexpr int RANK = SHAPE::RANK, AXIS = SHAPE::AXIS;
  na_walk walk;
  int size[3], pitch = SHAPE::PITCH;
  walk.first = walk.gap = 0;
  walk.open = NA_TEAM >= 32;
  NA_EACH_AXIS_BACK(a) {
    const int low = na_max(seen.any.low[a], slab.low[a]);
    const int high = na_min(seen.any.high[a], slab.high[a]);
    walk.box.low[a] = low;
    walk.box.high[a] = high;
    walk.open = walk.open && seen.all.low[a] <= low && high <= seen.all.high[a];
    size[a] = na_max(high - low, 0);
    walk.first += (low - slab.low[a]) * pitch;
    if (a == AXIS) walk.down = pitch;
    if (RANK > 2 && a == SHAPE::OTHER) walk.gap = pitch - na_row_length<SHAPE>(size[2]) * SHAPE::PITCH;
    pitch *= slab.high[a] - slab.low[a];
  }
  walk.depth = size[AXIS];
  walk.length = RANK > 1 ? na_row_length<SHAPE>(size[2]) : 1;
  if (RANK > 2) walk.open = walk.open && walk.length == size[2];
  walk.width = walk.depth > 0 ? walk.length * (RANK > 2 ? size[SHAPE::OTHER] : 1) : 0;
  walk.to_depth = walk.depth;
  walk.to_width = walk.width;
  walk.open = walk.open && walk.depth % SHAPE::DEEP == 0 && walk.width % SHAPE::COLUMNS == 0;
  return walk;
}

struct na_column {
  na_point token[NA_PER_ROW];  // mine in the first fragment,
  na_picked at;                // where they lie, and those that I look up,
  na_picked last;              // and the last ones below them
  int from[NA_ROWS];           // how far my first token lies behind the first in sight of each row,
  uint count[NA_ROWS];         // how many are in sight,
  float hidden[NA_PAIRS];      // and what masks a logit: 0, or NA_MASKED if another axis does
};

struct na_spot {
  na_point token;
  int at;    // in the slab
  int last;  // the last token below it
};

// Token `number` of the fragment at the top of the column that begins `across`. Beyond the end it is
// the last: what is read there must be numbers.
template <typename SHAPE>
NA_FN na_spot na_spot_at(const na_walk walk, int across, int number) {
  constexpr int RANK = SHAPE::RANK;
  const int row = uint(number) / SHAPE::COLUMNS;
  const int beside = na_min(across + int(uint(number) % SHAPE::COLUMNS), walk.width - 1);
  const int y = RANK > 2 ? na_small_quotient(beside, walk.length) : 0;
  na_spot spot;
  NA_EACH_AXIS(a) spot.token.at[a] = walk.box.low[a];
  spot.token.at[SHAPE::AXIS] += row;
  if (RANK > 2) spot.token.at[SHAPE::OTHER] += y;
  if (RANK > 1) spot.token.at[2] += beside - y * walk.length;
  const int top = walk.first + (RANK > 2 ? y * walk.gap : 0) + (RANK > 1 ? beside * SHAPE::PITCH : 0);
  spot.at = top + row * walk.down;
  spot.last = top + (walk.depth - 1) * walk.down;
  return spot;
}

template <typename SHAPE, typename ROW>
NA_FN na_column na_column_at(const na_walk walk, const THR ROW* mine, int across, na_lane me) {
  constexpr int RANK = SHAPE::RANK, AXIS = SHAPE::AXIS;
  na_column column;
  NA_UNROLL for (int i = 0; i < NA_LOOKUPS; i++) {
    const na_spot spot = na_spot_at<SHAPE>(walk, across, na_lookup(me, i));
    column.at.mine[i] = spot.at;
    column.last.mine[i] = spot.last;
  }
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t++) {
    const na_spot spot = na_spot_at<SHAPE>(walk, across, me.column + na_behind(t));
    column.token[t] = spot.token;
    column.at.column[t] = spot.at;
    column.last.column[t] = spot.last;
  }
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    column.from[h] = 0;
    column.count[h] = 0;
    NA_UNROLL for (int t = 0; t < NA_PER_ROW; t++) column.hidden[h * NA_PER_ROW + t] = 0.0f;
  }
  if (walk.open) return column;
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    const na_sight sight = mine[h].sight;
    const int ahead = walk.box.high[AXIS] - sight.first[AXIS];
    column.from[h] = column.token[0].at[AXIS] - sight.first[AXIS];
    column.count[h] = uint(sight.count[AXIS]);
    if (SHAPE::PASSES)  // fragments may, sight must not
      column.count[h] = uint(na_clamp(ahead, 0, sight.count[AXIS]));
    NA_UNROLL for (int t = 0; t < NA_PER_ROW; t++) {
      bool inside = across + int(uint(me.column + na_behind(t)) % SHAPE::COLUMNS) < walk.width;
      if (NA_PLANE > 0 && RANK > 2) inside = inside && column.token[t].at[2] < walk.box.high[2];
      NA_EACH_AXIS(a)
        if (a != AXIS)
          inside = inside && uint(column.token[t].at[a] - sight.first[a]) < uint(sight.count[a]);
      column.hidden[h * NA_PER_ROW + t] = inside ? 0.0f : NA_MASKED;
    }
  }
  return column;
}

// Where the tokens of the fragment lie that begins i tokens down a column.
template <typename SHAPE>
NA_FN na_picked na_pick(const na_walk walk, const na_column column, int i) {
  const bool alike = SHAPE::DEEP == 1 && SHAPE::PASSES;  // all of its tokens pass the end, or none
  const int down = (alike ? na_min(i, walk.depth - 1) : i) * walk.down;
  na_picked at;
  NA_UNROLL for (int j = 0; j < NA_LOOKUPS; j++) {
    at.mine[j] = column.at.mine[j] + down;
    if (SHAPE::DEEP > 1 && NA_PLANE == 0) at.mine[j] = na_min(at.mine[j], column.last.mine[j]);
  }
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t++) {
    at.column[t] = column.at.column[t] + down;
    if (SHAPE::DEEP > 1) at.column[t] = na_min(at.column[t], column.last.column[t]);
  }
  na_share(at);
  return at;
}

// What to add to a logit, of pair e of mine: x, which is column.hidden[e] and more, or NA_MASKED if
// the column's axis hides one from the other.
template <typename SHAPE>
NA_FN float na_mask(const na_column column, int i, int e, float x) {
  const int from = column.from[na_row_of(e)] + i + na_behind(na_token_of(e)) / SHAPE::COLUMNS;
  return SHAPE::FLAT || uint(from) < column.count[na_row_of(e)] ? x : NA_MASKED;
}

// The same, where nothing may be masked.
template <typename SHAPE>
NA_FN float na_mask_of(const na_walk walk, const na_column column, int i, int e) {
  return walk.open ? 0.0f : na_mask<SHAPE>(column, i, e, column.hidden[e]);
}

// Products become logits in powers of 2, rounded once.
template <typename SHAPE>
NA_FN void na_mask_logits(THR na_pairs<float>& s, float scale, const na_walk walk,
                          const na_column column, int i) {
  if (walk.open)
    NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) s.e[e] *= scale;
  else
    NA_UNROLL for (int e = 0; e < NA_PAIRS; e++)
      s.e[e] = na_multiply_add(s.e[e], scale, na_mask<SHAPE>(column, i, e, column.hidden[e]));
}

template <typename SHAPE>
NA_FN bool na_in_sight(const na_walk walk, const na_column column, int i, int e) {
  return na_mask_of<SHAPE>(walk, column, i, e) == 0.0f;
}

template <typename SHAPE>
NA_FN na_point na_token(const na_column column, int i, int e) {
  na_point token = column.token[na_token_of(e)];
  token.at[SHAPE::AXIS] += i;
  return token;
}

// na_entry of na_token.
template <typename SHAPE>
NA_FN int na_entry_at(const na_table table, const na_column column, int i, int e) {
  return na_entry<SHAPE::RANK>(table, column.token[na_token_of(e)]) + i * table.pitch[SHAPE::AXIS];
}
