// Which tile of queries or keys a threadgroup works on, and who sees whom there.
//
// Axes are z, y, x; a problem of a lower rank has only the last ones. A tile belongs to one dilation
// class, in which an axis looks undilated; positions are ranks inside the class for keys and a
// running number t for queries.

// The parameter block, int32. ops/gpu/params.py writes it, by these names. A launch may be of a part of
// the tiles alone: those from rank NA_START on, and the arrays that have a row for each of a tile's
// rows then have NA_OWN of them on an axis (ops/gpu/cuts.py), those of queries NA_FINER times as many.
enum na_param {
  NA_HEADS, NA_KV_HEADS, NA_SCALE, NA_FILL, NA_RAGGED, NA_ITEMS, NA_BINS, NA_SHARING, NA_QUERY_HEADS,
  NA_AXES, NA_AXIS = 16
};
enum na_axis_param {
  NA_LENGTH, NA_OUTPUTS, NA_KERNEL, NA_DILATION, NA_STRIDE, NA_WINDOW_STRIDE, NA_CAUSAL, NA_CLASSES,
  NA_TILES, NA_TEAMS, NA_START, NA_OWN, NA_REACH, NA_FINER, NA_QUERIES
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

// Whose rows a head of the problem has in arrays of queries. Where these lie on a finer map than keys
// (FINER) it is a head of the arrays and a place in each cell, that of the one query that it has there.
struct na_source {
  int head;
  int heads;   // of the arrays
  int extent;  // names how many rows of the tile's own they have on an axis
};

// Has the queries of a tile lie where those of a head do.
template <int RANK, bool FINER>
NA_FN na_source na_source_of(const DEV int* p, int head, THR na_tile& tile) {
  na_source source = {head, p[FINER ? NA_QUERY_HEADS : NA_HEADS], FINER ? NA_QUERIES : NA_OWN};
  if (FINER)
    NA_EACH_AXIS_BACK(a) {
      const int finer = na_axis_of(p, a)[NA_FINER], rest = na_quotient(source.head, finer);
      tile.axis[a].out0 = tile.axis[a].out0 * finer + source.head - rest * finer;
      tile.axis[a].out_step *= finer;
      source.head = rest;
    }
  return source;
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

template <bool KEYS>
NA_FN na_span na_sees(const na_axis axis, int at) {
  return KEYS ? na_viewers(axis, at) : na_window(axis, at);
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

// The keys that the queries [corner, corner + size) of the tile see; or those that see its KEYS.
template <int RANK, bool KEYS>
NA_FN na_seen na_seen_from(const na_tile tile, const na_point corner, const na_point size) {
  na_seen seen;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    const int first = tile.start[a] + corner.at[a], end = first + size.at[a];
    const int last = na_min(end, KEYS ? axis.keys : axis.queries) - 1;
    na_see(seen, a, na_sees<KEYS>(axis, first), na_sees<KEYS>(axis, na_max(last, 0)), first <= last,
           last == end - 1);
  }
  return seen;
}
