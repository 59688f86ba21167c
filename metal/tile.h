// What all kernels share: which tile of queries or keys a threadgroup works on, how the tokens its
// windows touch are brought into threadgroup memory (a slab), and how a simdgroup counts them.
//
// Axes are padded to three (z, y, x). A tile belongs to one dilation class, in which an axis looks
// undilated; positions are ranks inside the class for keys and a running number t for queries.

// The parameter block, int32. ops/gpu_plan.py writes it.
enum na_param {
  NA_HEADS, NA_KV_HEADS, NA_SCALE, NA_FILL, NA_RAGGED, NA_ITEMS, NA_BINS, NA_AXES = 8, NA_AXIS = 10
};
#define NA_LOG2E 1.44269504089f
#define NA_LN2 0.69314718056f
#define NA_LOWEST -1.0e30f   // finite, so that no fast-math mode can break them
#define NA_MASKED -3.0e38f
#define NA_MINUS_INFINITY int(0xff800000u)

enum na_axis_param {
  NA_LENGTH, NA_OUTPUTS, NA_KERNEL, NA_DILATION, NA_STRIDE, NA_WINDOW_STRIDE, NA_CAUSAL, NA_CLASSES,
  NA_TILES
};

NA_FN int na_window_size(const DEV int* p, int a) { return p[NA_AXES + a * NA_AXIS + NA_KERNEL]; }

struct na_axis {
  int keys;             // keys of the class, in this sample
  int queries;          // queries of the class, in this sample
  int key_padded;       // the same with the padding of a shorter sample
  int query_padded;
  int key0, key_step;   // token of the key of rank r: key0 + r * key_step
  int out0, out_step;   // output index of query t: out0 + t * out_step
  int rank0, rank_step; // rank of query t
  int window, window_stride, causal;
};

struct na_tile {
  int batch;
  int start[3];
  na_axis axis[3];
};

struct na_point {
  int at[3];
};

struct na_box {
  int low[3];
  int high[3];
};

NA_FN na_axis na_read_axis(const DEV int* p, int query_class, int key_class, int rank, int length) {
  const int dilation = p[NA_DILATION], stride = p[NA_STRIDE], classes = p[NA_CLASSES];
  na_axis axis;
  axis.keys = na_class_size(length, dilation, key_class);
  axis.key_padded = na_class_size(p[NA_LENGTH], dilation, key_class);
  axis.queries = na_class_size(na_ceil_div(length, stride), classes, query_class);
  axis.query_padded = na_class_size(p[NA_OUTPUTS], classes, query_class);
  axis.key0 = key_class;
  axis.key_step = dilation;
  axis.out0 = query_class;
  axis.out_step = classes;
  axis.rank0 = rank;
  axis.rank_step = stride * classes / dilation;
  axis.window = p[NA_KERNEL];
  axis.window_stride = p[NA_WINDOW_STRIDE];
  axis.causal = p[NA_CAUSAL];
  return axis;
}

NA_FN int na_length(const DEV int* p, const DEV int* lengths, int batch, int a) {
  const int padded = p[NA_AXES + a * NA_AXIS + NA_LENGTH];
  return p[NA_RAGGED] ? na_clamp(lengths[batch * 3 + a], 0, padded) : padded;
}

// Work item -> tile of queries. The token of query t is (out0 + t * out_step) * stride, so a query
// class is one residue of the output index modulo dilation / gcd(dilation, stride).
NA_FN na_tile na_query_tile(const DEV int* p, const DEV int* lengths, int item, const na_point size) {
  na_tile tile;
  int residue[3];
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    const int tiles = p[NA_AXES + a * NA_AXIS + NA_TILES];
    tile.start[a] = item % tiles * size.at[a];
    item /= tiles;
  }
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    const int classes = p[NA_AXES + a * NA_AXIS + NA_CLASSES];
    residue[a] = item % classes;
    item /= classes;
  }
  tile.batch = item;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    const DEV int* axis = p + NA_AXES + a * NA_AXIS;
    const int token = residue[a] * axis[NA_STRIDE], dilation = axis[NA_DILATION];
    tile.axis[a] = na_read_axis(axis, residue[a], token % dilation, token / dilation,
                                na_length(p, lengths, item, a));
  }
  return tile;
}

// Work item -> tile of keys, with the class of the queries that can see it (none: no queries).
NA_FN na_tile na_key_tile(const DEV int* p, const DEV int* lengths, int item, const na_point size) {
  na_tile tile;
  int residue[3];
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    const int tiles = p[NA_AXES + a * NA_AXIS + NA_TILES];
    tile.start[a] = item % tiles * size.at[a];
    item /= tiles;
  }
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    const int dilation = p[NA_AXES + a * NA_AXIS + NA_DILATION];
    residue[a] = item % dilation;
    item /= dilation;
  }
  tile.batch = item;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    const DEV int* axis = p + NA_AXES + a * NA_AXIS;
    const int stride = axis[NA_STRIDE], dilation = axis[NA_DILATION], classes = axis[NA_CLASSES];
    int query = stride == 1 ? residue[a] : 0;
    while (query < classes && query * stride % dilation != residue[a]) query++;
    tile.axis[a] = na_read_axis(axis, query, residue[a], query * stride / dilation,
                                na_length(p, lengths, item, a));
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
  t.first = na_ceil_div(na_max(ranks.first - axis.rank0, 0), axis.rank_step);
  t.last = na_min(na_ceil_div(na_max(ranks.last - axis.rank0, 0), axis.rank_step), axis.queries);
  return t;
}

// All keys that the queries [corner, corner + size) of the tile see; empty where there are none.
NA_FN na_box na_keys_seen(const na_tile tile, const na_point corner, const na_point size) {
  na_box box;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    const int first = tile.start[a] + corner.at[a];
    const int last = na_min(first + size.at[a], tile.axis[a].queries);
    box.low[a] = first < last ? na_window(tile.axis[a], first).first : 0;
    box.high[a] = first < last ? na_window(tile.axis[a], last - 1).last : 0;
  }
  return box;
}

// All queries that see the keys [corner, corner + size) of the tile.
NA_FN na_box na_queries_seeing(const na_tile tile, const na_point corner, const na_point size) {
  na_box box;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    const int first = tile.start[a] + corner.at[a];
    const int last = na_min(first + size.at[a], tile.axis[a].keys);
    box.low[a] = first < last ? na_viewers(tile.axis[a], first).first : 0;
    box.high[a] = first < last ? na_viewers(tile.axis[a], last - 1).last : 0;
  }
  return box;
}

// ---- Memory: row numbers of a [batch, *axes, heads] array, to be multiplied by the row's length.

struct na_rows {
  long base;
  long step[3];
};

NA_FN long na_row(const na_rows rows, int z, int y, int x) {
  return rows.base + z * rows.step[0] + y * rows.step[1] + x * rows.step[2];
}

NA_FN na_rows na_key_rows(const DEV int* p, const na_tile tile, int kv_head) {
  na_rows rows;
  long pitch = p[NA_KV_HEADS];
  rows.base = kv_head;
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    rows.base += tile.axis[a].key0 * pitch;
    rows.step[a] = tile.axis[a].key_step * pitch;
    pitch *= p[NA_AXES + a * NA_AXIS + NA_LENGTH];
  }
  rows.base += tile.batch * pitch;
  return rows;
}

NA_FN na_rows na_query_rows(const DEV int* p, const na_tile tile, int head) {
  na_rows rows;
  long pitch = p[NA_HEADS];
  rows.base = head;
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    rows.base += tile.axis[a].out0 * pitch;
    rows.step[a] = tile.axis[a].out_step * pitch;
    pitch *= p[NA_AXES + a * NA_AXIS + NA_OUTPUTS];
  }
  rows.base += tile.batch * pitch;
  return rows;
}

// ---- Places inside a tile: simdgroups of G0 x G1 x G2, each with eight tokens of Q0 x Q1 x Q2.

template <int N1, int N2>
NA_FN na_point na_place(int i, const na_point scale) {
  na_point place;
  place.at[0] = i / (N1 * N2) * scale.at[0];
  place.at[1] = i / N2 % N1 * scale.at[1];
  place.at[2] = i % N2 * scale.at[2];
  return place;
}

NA_FN na_point na_size(int z, int y, int x) {
  na_point size;
  size.at[0] = z;
  size.at[1] = y;
  size.at[2] = x;
  return size;
}

// ---- Slabs: the part of a box that fits into threadgroup memory at once.

// How far a slab of at most `capacity` tokens reaches, in pieces of about equal size.
NA_FN na_point na_slab_size(const na_box box, int capacity) {
  na_point size;
  NA_UNROLL for (int a = 2; a >= 0; a--) {
    const int length = na_max(box.high[a] - box.low[a], 1);
    const int pieces = na_ceil_div(length, na_min(length, capacity));
    size.at[a] = na_ceil_div(length, pieces);
    capacity /= size.at[a];
  }
  return size;
}

NA_FN na_box na_slab(const na_box box, const na_point size, int z, int y, int x) {
  na_box slab;
  slab.low[0] = z;
  slab.low[1] = y;
  slab.low[2] = x;
  NA_UNROLL for (int a = 0; a < 3; a++)
    slab.high[a] = na_min(slab.low[a] + size.at[a], box.high[a]);
  return slab;
}

// Tokens of a box, numbered row by row. Divisions by its sides go through floats: exact for the
// numbers that fit into a slab.
struct na_count {
  int count, width, height;
  float per_width, per_height;
  int low[3];
  int slab, slab_width, slab_plane;  // slab row of the first token, and the slab's pitches
};

struct na_cell {
  int at[3];
  int slab;
};

NA_FN na_count na_count_within(const na_box box, const na_box slab) {
  na_count n;
  int high[3];
  NA_UNROLL for (int a = 0; a < 3; a++) {
    n.low[a] = na_max(box.low[a], slab.low[a]);
    high[a] = na_max(na_min(box.high[a], slab.high[a]), n.low[a]);
  }
  n.width = high[2] - n.low[2];
  n.height = high[1] - n.low[1];
  n.count = (high[0] - n.low[0]) * n.height * n.width;
  n.per_width = 1.0f / float(na_max(n.width, 1));
  n.per_height = 1.0f / float(na_max(n.height, 1));
  n.slab_width = slab.high[2] - slab.low[2];
  n.slab_plane = n.slab_width * (slab.high[1] - slab.low[1]);
  n.slab = (n.low[0] - slab.low[0]) * n.slab_plane + (n.low[1] - slab.low[1]) * n.slab_width +
           n.low[2] - slab.low[2];
  return n;
}

template <int RANK>
NA_FN na_cell na_cell_of(const na_count n, int i) {
  const int row = RANK > 1 ? int((float(i) + 0.5f) * n.per_width) : 0;
  const int plane = RANK > 2 ? int((float(row) + 0.5f) * n.per_height) : 0;
  const int x = i - row * n.width, y = row - plane * n.height;
  na_cell cell;
  cell.at[0] = n.low[0] + plane;
  cell.at[1] = n.low[1] + y;
  cell.at[2] = n.low[2] + x;
  cell.slab = n.slab + plane * n.slab_plane + y * n.slab_width + x;
  return cell;
}

// Elements copied at once: 16 bytes where the row allows it.
template <typename T, int D>
struct na_vector {
  enum { WIDE = 16 / int(sizeof(T)) };
  enum { SIZE = D % WIDE == 0 ? int(WIDE) : D % 4 == 0 ? 4 : D % 2 == 0 ? 2 : 1 };
  struct alignas(SIZE * sizeof(T)) pack {
    T e[SIZE];
  };
};

// A slab row of D elements, rounded up to whole fragments and padded against bank conflicts.
template <typename T, int D>
NA_FN constexpr int na_pitch() {
  return (D + 7) / 8 * 8 + NA_PAD_BYTES / int(sizeof(T));
}

// Copies the rows [D] of all tokens of `slab` from device to threadgroup memory.
template <int RANK, typename T, int D>
NA_FN void na_stage(TGP T* to, const DEV T* from, const na_rows rows, const na_box slab, int thread_index,
                    int threads) {
  typedef typename na_vector<T, D>::pack pack;
  constexpr int SIZE = na_vector<T, D>::SIZE, VECTORS = D / SIZE, PITCH = na_pitch<T, D>();
  const na_count all = na_count_within(slab, slab);
  for (int i = thread_index; i < all.count * VECTORS; i += threads) {
    const na_cell cell = na_cell_of<RANK>(all, i / VECTORS);
    const int d = i % VECTORS * SIZE;
    *(TGP pack*)(to + cell.slab * PITCH + d) =
        *(const DEV pack*)(from + na_row(rows, cell.at[0], cell.at[1], cell.at[2]) * D + d);
  }
}

// The same for one float per token.
template <int RANK>
NA_FN void na_stage_floats(TGP float* to, const DEV float* from, const na_rows rows,
                           const na_box slab, int thread_index, int threads) {
  const na_count all = na_count_within(slab, slab);
  for (int i = thread_index; i < all.count; i += threads) {
    const na_cell cell = na_cell_of<RANK>(all, i);
    to[i] = from[na_row(rows, cell.at[0], cell.at[1], cell.at[2])];
  }
}

// Zeroes the elements between D and the end of its last fragment in every row of a slab.
template <typename T, int D>
NA_FN void na_clear_tails(TGP T* slab, int rows, int thread_index, int threads) {
  constexpr int TAIL = (8 - D % 8) % 8, PITCH = na_pitch<T, D>();
  if (TAIL > 0)
    for (int i = thread_index; i < rows * TAIL; i += threads)
      slab[i / na_max(TAIL, 1) * PITCH + D + i % na_max(TAIL, 1)] = T(0.0f);
}

// Eight tokens from number i on: where they lie in the slab, and the cells of my two columns.
template <int RANK>
NA_FN na_picked na_pick(const na_count n, int i, na_lane me, THR na_cell* cells) {
  na_picked at;
  at.row = na_cell_of<RANK>(n, na_min(i + me.row, n.count - 1)).slab;
  NA_UNROLL for (int e = 0; e < 2; e++) {
    cells[e] = na_cell_of<RANK>(n, na_min(i + me.column + e, n.count - 1));
    at.column[e] = cells[e].slab;
  }
  return at;
}

// ---- The query, or the key, of one matrix row.

struct na_query {
  int at[3];     // t, inside the padded array
  int rank[3];
  na_span keys[3];
  bool stored;   // it is an entry of the padded array
  bool live;     // ... and of this sample
};

template <int Q1, int Q2>
NA_FN na_query na_query_of(const na_tile tile, const na_point corner, int row) {
  const na_point place = na_place<Q1, Q2>(row, na_size(1, 1, 1));
  na_query query;
  query.stored = query.live = true;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    const na_axis axis = tile.axis[a];
    const int t = tile.start[a] + corner.at[a] + place.at[a];
    query.stored = query.stored && t < axis.query_padded;
    query.live = query.live && t < axis.queries;
    query.at[a] = na_clamp(t, 0, axis.query_padded - 1);
    query.rank[a] = axis.rank0 + query.at[a] * axis.rank_step;
    query.keys[a] = na_window(axis, query.at[a]);
  }
  return query;
}

NA_FN bool na_sees(const na_query query, const na_cell key) {
  bool inside = query.live;
  NA_UNROLL for (int a = 0; a < 3; a++)
    inside = inside && key.at[a] >= query.keys[a].first && key.at[a] < query.keys[a].last;
  return inside;
}

// Entry of a [2K-1 per axis] table for the distance from a query to a key that it sees.
NA_FN int na_offset_bin(const DEV int* p, int z, int y, int x) {
  const int k0 = na_window_size(p, 0), k1 = na_window_size(p, 1), k2 = na_window_size(p, 2);
  return ((z + k0 - 1) * (2 * k1 - 1) + y + k1 - 1) * (2 * k2 - 1) + x + k2 - 1;
}

NA_FN int na_bin(const DEV int* p, const na_query query, const na_cell key) {
  return na_offset_bin(p, key.at[0] - query.rank[0], key.at[1] - query.rank[1],
                       key.at[2] - query.rank[2]);
}

struct na_key {
  int at[3];
  na_span queries[3];  // the t that see it
  bool stored;
  bool live;
};

template <int Q1, int Q2>
NA_FN na_key na_key_of(const na_tile tile, const na_point corner, int row) {
  const na_point place = na_place<Q1, Q2>(row, na_size(1, 1, 1));
  na_key key;
  key.stored = key.live = true;
  NA_UNROLL for (int a = 0; a < 3; a++) {
    const na_axis axis = tile.axis[a];
    const int rank = tile.start[a] + corner.at[a] + place.at[a];
    key.stored = key.stored && rank < axis.key_padded;
    key.live = key.live && rank < axis.keys;
    key.at[a] = na_clamp(rank, 0, axis.key_padded - 1);
    key.queries[a] = na_viewers(axis, key.at[a]);
  }
  return key;
}

NA_FN bool na_seen_by(const na_key key, const na_cell query) {
  bool inside = key.live;
  NA_UNROLL for (int a = 0; a < 3; a++)
    inside = inside && query.at[a] >= key.queries[a].first && query.at[a] < key.queries[a].last;
  return inside;
}

NA_FN int na_bin(const DEV int* p, const na_key key, const na_tile tile, const na_cell query) {
  int distance[3];
  NA_UNROLL for (int a = 0; a < 3; a++)
    distance[a] = key.at[a] - tile.axis[a].rank0 - query.at[a] * tile.axis[a].rank_step;
  return na_offset_bin(p, distance[0], distance[1], distance[2]);
}

// ---- Slots: the keys of a query counted from the start of its window, row-major over the axes.

NA_FN int na_volume(const DEV int* p) {
  return na_window_size(p, 0) * na_window_size(p, 1) * na_window_size(p, 2);
}

NA_FN int na_slot_of(const DEV int* p, int z, int y, int x) {
  return (z * na_window_size(p, 1) + y) * na_window_size(p, 2) + x;
}

NA_FN int na_slot(const DEV int* p, const na_query query, const na_cell key) {
  return na_slot_of(p, key.at[0] - query.keys[0].first, key.at[1] - query.keys[1].first,
                    key.at[2] - query.keys[2].first);
}

NA_FN int na_slot(const DEV int* p, const na_tile tile, const na_key key, const na_cell query) {
  int slot[3];
  NA_UNROLL for (int a = 0; a < 3; a++)
    slot[a] = key.at[a] - na_window(tile.axis[a], query.at[a]).first;
  return na_slot_of(p, slot[0], slot[1], slot[2]);
}

// Whether every slot of a query has a key.
NA_FN bool na_whole(const na_query query, int volume) {
  int count = 1;
  NA_UNROLL for (int a = 0; a < 3; a++) count *= query.keys[a].last - query.keys[a].first;
  return query.live && count == volume;
}

// ---- Bins: a simdgroup's own sums per relative position, in threadgroup memory (NEAR entries) or,
// where they would not fit (NEAR == 0), in device memory. No atomics, hence the same sums each run.

template <int NEAR>
NA_FN void na_clear_bins(TGP float* sums, DEV float* total, int bins, int lane) {
  for (int i = lane; i < bins; i += 32) {
    if (NEAR > 0) sums[i] = 0.0f;
    else total[i] = 0.0f;
  }
  simdgroup_barrier(NEAR > 0 ? mem_flags::mem_threadgroup : mem_flags::mem_device);
}

// Adds my two values to bins (-1: to none), one query after the other: the keys of one query are at
// different distances, so that no two lanes meet.
template <int NEAR>
NA_FN void na_add_to_bins(TGP float* sums, DEV float* total, na_lane me, int bin0, float value0,
                          int bin1, float value1) {
  for (int row = 0; row < 8; row++) {
    if (row == me.row) {
      if (NEAR > 0) {
        if (bin0 >= 0) sums[bin0] += value0;
        if (bin1 >= 0) sums[bin1] += value1;
      } else {
        if (bin0 >= 0) total[bin0] += value0;
        if (bin1 >= 0) total[bin1] += value1;
      }
    }
    simdgroup_barrier(NEAR > 0 ? mem_flags::mem_threadgroup : mem_flags::mem_device);
  }
}

template <int NEAR>
NA_FN void na_write_bins(TGP float* sums, DEV float* total, int bins, int lane) {
  if (NEAR > 0)
    for (int i = lane; i < bins; i += 32) total[i] = sums[i];
}

// ---- Rows of device memory as fragments: my two elements, from column d on, zero beyond D.

template <int D, typename T>
NA_FN na_frag<T> na_load(const DEV T* row, int d) {
  na_frag<T> part;
  NA_UNROLL for (int e = 0; e < 2; e++) part.e[e] = D % 8 == 0 || d + e < D ? row[d + e] : T(0.0f);
  return part;
}

template <int D, typename T>
NA_FN void na_store(DEV T* row, int d, const na_frag<float> part, float factor) {
  NA_UNROLL for (int e = 0; e < 2; e++)
    if (D % 8 == 0 || d + e < D) row[d + e] = T(part.e[e] * factor);
}
