// What all kernels share: which tile of queries or keys a threadgroup works on, how the tokens its
// windows touch are brought into threadgroup memory (a slab), and how a simdgroup counts them.
//
// Axes are z, y, x; a problem of a lower rank has only the last ones. A tile belongs to one dilation
// class, in which an axis looks undilated; positions are ranks inside the class for keys and a
// running number t for queries.

// The parameter block, int32. ops/gpu/params.py writes it, by these names. A launch may be of a part of
// the tiles alone: those from rank NA_START on, and the arrays that have a row for each of a tile's
// rows then have NA_OWN of them on an axis (ops/gpu/parts.py).
enum na_param {
  NA_HEADS, NA_KV_HEADS, NA_SCALE, NA_FILL, NA_RAGGED, NA_ITEMS, NA_BINS, NA_SHARING,
  NA_AXES, NA_AXIS = 16
};
enum na_axis_param {
  NA_LENGTH, NA_OUTPUTS, NA_KERNEL, NA_DILATION, NA_STRIDE, NA_WINDOW_STRIDE, NA_CAUSAL, NA_CLASSES,
  NA_TILES, NA_TEAMS, NA_START, NA_OWN, NA_REACH
};

#define NA_LOG2E 1.44269504089f
#define NA_LN2 0.69314718056f
#define NA_LOWEST -1.0e30f   // finite, so that no fast-math mode can break them
#define NA_MASKED -3.0e38f
#define NA_LEAST_BIAS -1.0e29f
#define NA_MINUS_INFINITY int(0xff800000u)
#define NA_EACH_AXIS(a) NA_UNROLL for (int a = 3 - RANK; a < 3; a++)
#define NA_EACH_AXIS_BACK(a) NA_UNROLL for (int a = 2; a >= 3 - RANK; a--)

struct na_point {
  int at[3];
};

struct na_box {
  int low[3];
  int high[3];
};

struct na_axis {
  int keys;              // keys of the class, in this sample
  int queries;           // queries of the class, in this sample
  int padded;            // what a tile is made of, with the padding of a shorter sample
  int key0, key_step;    // token of the key of rank r: key0 + r * key_step
  int out0, out_step;    // output index of query t: out0 + t * out_step
  int rank0, rank_step;  // rank of query t
  int window, window_stride, causal;
};

struct na_tile {
  int batch;
  int start[3];
  na_axis axis[3];
};

NA_FN int na_pieces(int n, int size) { return na_quotient(n + size - 1, size); }

NA_FN const DEV int* na_axis_of(const DEV int* p, int a) { return p + NA_AXES + a * NA_AXIS; }

// A problem is PLAIN if it has none of what these stand for: then they are constants.
template <bool PLAIN>
NA_FN int na_option(const DEV int* axis, int name) {
  return PLAIN ? (name == NA_CAUSAL ? 0 : 1) : axis[name];
}

template <bool PLAIN>
NA_FN int na_length(const DEV int* p, const DEV int* lengths, int batch, int a) {
  const int padded = na_axis_of(p, a)[NA_LENGTH];
  return !PLAIN && p[NA_RAGGED] ? na_clamp(lengths[batch * 3 + a], 0, padded) : padded;
}

template <bool PLAIN>
NA_FN na_axis na_read_axis(const DEV int* p, int query_class, int key_class, int token, int length,
                           bool by_key) {
  const int dilation = na_option<PLAIN>(p, NA_DILATION), stride = na_option<PLAIN>(p, NA_STRIDE);
  const int classes = na_option<PLAIN>(p, NA_CLASSES);
  na_axis axis;
  axis.keys = na_pieces(length - key_class, dilation);
  axis.queries = na_pieces(na_pieces(length, stride) - query_class, classes);
  const int start = p[NA_START];
  axis.padded = start + (by_key ? na_pieces(p[NA_OWN] - key_class, dilation)
                                : na_pieces(p[NA_OWN] - query_class, classes));
  axis.key0 = key_class - (by_key ? start * dilation : 0);
  axis.key_step = dilation;
  axis.out0 = query_class - (by_key ? 0 : start * classes);
  axis.out_step = classes;
  axis.rank0 = na_quotient(token, dilation);
  axis.rank_step = na_quotient(stride * classes, dilation);
  axis.window = p[NA_KERNEL];
  axis.window_stride = na_option<PLAIN>(p, NA_WINDOW_STRIDE);
  axis.causal = na_option<PLAIN>(p, NA_CAUSAL);
  return axis;
}

// Work item -> where its tile starts and, per axis, its class out of `classes` many; the rest of the
// number is the batch entry.
template <int RANK, bool PLAIN>
NA_FN na_point na_read_item(const DEV int* p, int item, const na_point size, int classes,
                            THR na_tile& tile) {
  na_point residue;
  NA_EACH_AXIS_BACK(a) {
    const int tiles = na_axis_of(p, a)[NA_TILES], rest = na_quotient(item, tiles);
    tile.start[a] = na_axis_of(p, a)[NA_START] + (item - rest * tiles) * size.at[a];
    item = rest;
  }
  NA_EACH_AXIS_BACK(a) {
    const int count = na_option<PLAIN>(na_axis_of(p, a), classes);
    const int rest = na_quotient(item, count);
    residue.at[a] = item - rest * count;
    item = rest;
  }
  tile.batch = item;
  return residue;
}

// Tile of queries. The token of query t is (out0 + t * out_step) * stride, so a query class is one
// residue of the output index modulo dilation / gcd(dilation, stride).
template <int RANK, bool PLAIN>
NA_FN na_tile na_query_tile(const DEV int* p, const DEV int* lengths, int item,
                            const na_point size) {
  na_tile tile;
  const na_point residue = na_read_item<RANK, PLAIN>(p, item, size, NA_CLASSES, tile);
  NA_EACH_AXIS(a) {
    const DEV int* axis = na_axis_of(p, a);
    const int dilation = na_option<PLAIN>(axis, NA_DILATION);
    const int token = residue.at[a] * na_option<PLAIN>(axis, NA_STRIDE);
    const int key = token - na_quotient(token, dilation) * dilation;
    const int length = na_length<PLAIN>(p, lengths, tile.batch, a);
    tile.axis[a] = na_read_axis<PLAIN>(axis, residue.at[a], key, token, length, false);
  }
  return tile;
}

// Tile of keys, with the class of the queries that can see it; where there is none, no queries.
template <int RANK, bool PLAIN>
NA_FN na_tile na_key_tile(const DEV int* p, const DEV int* lengths, int item, const na_point size) {
  na_tile tile;
  const na_point residue = na_read_item<RANK, PLAIN>(p, item, size, NA_DILATION, tile);
  NA_EACH_AXIS(a) {
    const DEV int* axis = na_axis_of(p, a);
    const int stride = na_option<PLAIN>(axis, NA_STRIDE);
    const int dilation = na_option<PLAIN>(axis, NA_DILATION);
    const int classes = na_option<PLAIN>(axis, NA_CLASSES);
    int query = stride == 1 ? residue.at[a] : 0;
    while (query < classes && query * stride % dilation != residue.at[a]) query++;
    const int length = na_length<PLAIN>(p, lengths, tile.batch, a);
    tile.axis[a] =
        na_read_axis<PLAIN>(axis, query, residue.at[a], query * stride, length, true);
    if (query == classes) tile.axis[a].queries = 0;
  }
  return tile;
}

NA_FN na_span na_window(const na_axis axis, int t) {
  return na_keys_of(axis.rank0 + t * axis.rank_step, axis.keys, axis.window, axis.window_stride,
                    axis.causal);
}

// The queries t that see a key.
NA_FN na_span na_viewers(const na_axis axis, int key) {
  const na_span ranks =
      na_queries_of(key, axis.keys, axis.window, axis.window_stride, axis.causal);
  na_span t;
  t.first = na_pieces(na_max(ranks.first - axis.rank0, 0), axis.rank_step);
  t.last = na_min(na_pieces(na_max(ranks.last - axis.rank0, 0), axis.rank_step), axis.queries);
  return t;
}

// What a box of queries sees together, or a box of keys is seen by: neighbors' windows begin and end
// one after the other. Both are empty where there are none; `all` is, too, if one is not there.
struct na_seen {
  na_box any;  // what at least one of them sees
  na_box all;  // what each of them sees
};

NA_FN void na_see(THR na_seen& seen, int a, const na_span first, const na_span last, bool some,
                  bool whole) {
  seen.any.low[a] = some ? first.first : 0;
  seen.any.high[a] = some ? last.last : 0;
  seen.all.low[a] = last.first;
  seen.all.high[a] = whole ? first.last : 0;
}

// The keys that the queries [corner, corner + size) of the tile see.
template <int RANK>
NA_FN na_seen na_keys_seen(const na_tile tile, const na_point corner, const na_point size) {
  na_seen seen;
  NA_EACH_AXIS(a) {
    const int first = tile.start[a] + corner.at[a], end = first + size.at[a];
    const int last = na_min(end, tile.axis[a].queries) - 1;
    na_see(seen, a, na_window(tile.axis[a], first), na_window(tile.axis[a], na_max(last, 0)),
           first <= last, last == end - 1);
  }
  return seen;
}

// The queries that see the keys [corner, corner + size) of the tile.
template <int RANK>
NA_FN na_seen na_queries_seeing(const na_tile tile, const na_point corner, const na_point size) {
  na_seen seen;
  NA_EACH_AXIS(a) {
    const int first = tile.start[a] + corner.at[a], end = first + size.at[a];
    const int last = na_min(end, tile.axis[a].keys) - 1;
    na_see(seen, a, na_viewers(tile.axis[a], first), na_viewers(tile.axis[a], na_max(last, 0)),
           first <= last, last == end - 1);
  }
  return seen;
}

// ---- Memory: row numbers of a contiguous [batch, *axes, heads] array, to be multiplied by the row's
// length. How many there are on an axis is NA_OWN for what has a row for each of the tile's.

struct na_rows {
  long base;
  int step[3];
};

template <int RANK>
NA_FN long na_row(const na_rows rows, const na_point place) {
  long row = rows.base;
  NA_EACH_AXIS(a) row += na_product(place.at[a], rows.step[a]);
  return row;
}

template <int RANK>
NA_FN na_rows na_key_rows(const DEV int* p, const na_tile tile, int head, int heads, int extent) {
  na_rows rows;
  int pitch = heads;
  rows.base = head;
  NA_EACH_AXIS_BACK(a) {
    rows.base += na_product(tile.axis[a].key0, pitch);
    rows.step[a] = tile.axis[a].key_step * pitch;
    pitch *= na_axis_of(p, a)[extent];
  }
  rows.base += na_product(tile.batch, pitch);
  return rows;
}

template <int RANK>
NA_FN na_rows na_query_rows(const DEV int* p, const na_tile tile, int head, int extent) {
  na_rows rows;
  int pitch = p[NA_HEADS];
  rows.base = head;
  NA_EACH_AXIS_BACK(a) {
    rows.base += na_product(tile.axis[a].out0, pitch);
    rows.step[a] = tile.axis[a].out_step * pitch;
    pitch *= na_axis_of(p, a)[extent];
  }
  rows.base += na_product(tile.batch, pitch);
  return rows;
}

// ---- Arrays [batch, *axes, heads, channels] that lie anyhow, such as a third of a packed one: MLX's
// strides are in elements, and so are lines, which is where rows begin.

struct na_lines {
  long base;
  long step[3];
  long head;    // from a head to the next,
  int channel;  // and from a channel to the next
};

template <int RANK, typename ROWS>
NA_FN long na_line(const ROWS lines, const na_point place) {
  long line = lines.base;
  NA_EACH_AXIS(a) line += long(place.at[a]) * lines.step[a];
  return line;
}

template <int RANK, bool KEYS, typename STRIDES>
NA_FN na_lines na_lines_of(const STRIDES strides, const na_tile tile, int head) {
  na_lines lines;
  lines.channel = int(strides[RANK + 2]);
  lines.head = strides[RANK + 1];
  lines.base = tile.batch * strides[0] + head * lines.head;
  lines.step[0] = lines.step[1] = 0;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    const long stride = strides[RANK - 2 + a];
    lines.base += (KEYS ? axis.key0 : axis.out0) * stride;
    lines.step[a] = (KEYS ? axis.key_step : axis.out_step) * stride;
  }
  return lines;
}

template <int RANK, typename STRIDES>
NA_FN long na_line_at(const STRIDES strides, int batch, const na_point token, int head) {
  long line = batch * strides[0] + head * strides[RANK + 1];
  NA_EACH_AXIS(a) line += token.at[a] * strides[RANK - 2 + a];
  return line;
}

// The same for a row's number among `heads` of each of the tile's tokens: slow, and rarely needed.
template <int RANK, typename STRIDES>
NA_FN long na_line_again(const STRIDES strides, const DEV int* p, long row, int heads, int head) {
  na_point token;
  row /= heads;
  NA_EACH_AXIS_BACK(a) {
    const int own = na_axis_of(p, a)[NA_OWN];
    token.at[a] = int(row % own);
    row /= own;
  }
  return na_line_at<RANK>(strides, int(row), token, head);
}

// ---- Tables [z, y, x] of a query: slots count keys from the start of its window, bins (the entries
// of rpb) from the farthest place before it. An entry is the key's own number plus a constant.

struct na_table {
  int pitch[3];
};

template <int RANK>
NA_FN na_table na_slots(const DEV int* p) {
  na_table table;
  int pitch = 1;
  NA_EACH_AXIS_BACK(a) {
    table.pitch[a] = pitch;
    pitch *= na_axis_of(p, a)[NA_KERNEL];
  }
  return table;
}

template <int RANK>
NA_FN na_table na_bins(const DEV int* p) {
  na_table table;
  int pitch = 1;
  NA_EACH_AXIS_BACK(a) {
    table.pitch[a] = pitch;
    pitch *= 2 * na_axis_of(p, a)[NA_KERNEL] - 1;
  }
  return table;
}

template <int RANK>
NA_FN int na_entry(const na_table table, const na_point place) {
  int entry = 0;
  NA_EACH_AXIS(a) entry += place.at[a] * table.pitch[a];
  return entry;
}

NA_FN int na_volume(const DEV int* p) {
  return na_axis_of(p, 0)[NA_KERNEL] * na_axis_of(p, 1)[NA_KERNEL] * na_axis_of(p, 2)[NA_KERNEL];
}

// ---- Places inside a tile: a box of teams, each with a box of rows.

NA_FN na_point na_size(int z, int y, int x) {
  na_point size;
  size.at[0] = z;
  size.at[1] = y;
  size.at[2] = x;
  return size;
}

NA_FN na_point na_times(const na_point a, const na_point b) {
  return na_size(a.at[0] * b.at[0], a.at[1] * b.at[1], a.at[2] * b.at[2]);
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

// The query of one matrix row.
struct na_query {
  long row;        // of the output, if it is stored
  na_point token;  // where it lies on each axis of its arrays
  na_sight sight;  // its window; empty if it is outside the sample
  int bin;         // of the key 0, 0, 0; likewise slot
  int slot;
  bool stored;     // it is an entry of the padded array
  bool live;       // ... and of this sample
};

template <int RANK>
NA_FN na_query na_query_at(const DEV int* p, const na_tile tile, const na_rows rows,
                           const na_point corner, const na_point place) {
  const na_table slots = na_slots<RANK>(p), bins = na_bins<RANK>(p);
  na_query query;
  na_point t;
  query.stored = query.live = true;
  query.bin = query.slot = 0;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    const int at = tile.start[a] + corner.at[a] + place.at[a];
    query.stored = query.stored && at < axis.padded;
    query.live = query.live && at < axis.queries;
    t.at[a] = at;
    query.token.at[a] = axis.out0 + at * axis.out_step;
    const na_span keys = na_window(axis, t.at[a]);
    query.sight.first[a] = keys.first;
    query.sight.count[a] = keys.last - keys.first;
    query.bin += (axis.window - 1 - axis.rank0 - t.at[a] * axis.rank_step) * bins.pitch[a];
    query.slot -= keys.first * slots.pitch[a];
  }
  if (!query.live) query.sight.count[2] = 0;
  query.row = na_row<RANK>(rows, t);
  return query;
}

// Whether every slot of a query has a key.
template <int RANK>
NA_FN bool na_whole(const na_query query, int volume) {
  int count = 1;
  NA_EACH_AXIS(a) count *= query.sight.count[a];
  return count == volume;
}

// The key of one matrix row.
struct na_key {
  long row;
  na_point token;
  int rank[3];
  na_sight sight;  // the queries that see it; none if it is outside the sample
  int bin;         // of the query 0, 0, 0
  bool stored;     // it is an entry of the padded array
  bool live;       // ... and of this sample
};

template <int RANK>
NA_FN na_key na_key_at(const DEV int* p, const na_tile tile, const na_rows rows,
                       const na_point corner, const na_point place) {
  const na_table bins = na_bins<RANK>(p);
  na_key key;
  na_point rank;
  key.stored = key.live = true;
  key.bin = 0;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    const int at = tile.start[a] + corner.at[a] + place.at[a];
    key.stored = key.stored && at < axis.padded;
    key.live = key.live && at < axis.keys;
    key.rank[a] = rank.at[a] = at;
    key.token.at[a] = axis.key0 + at * axis.key_step;
    const na_span queries = na_viewers(axis, rank.at[a]);
    key.sight.first[a] = queries.first;
    key.sight.count[a] = na_max(queries.last - queries.first, 0);
    key.bin += (axis.window - 1 - axis.rank0 + rank.at[a]) * bins.pitch[a];
  }
  if (!key.live) key.sight.count[2] = 0;
  key.row = na_row<RANK>(rows, rank);
  return key;
}
