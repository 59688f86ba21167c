// Where the rows of a tile's tokens lie in arrays, and its numbers in tables.
//
// Row numbers of a contiguous [batch, *axes, heads] array, to be multiplied by the row's
// length. How many there are on an axis is NA_OWN for what has a row for each of the tile's, or what
// na_source names.

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

// Of an array of queries, or of KEYS, of which `heads` share a token.
template <int RANK, bool KEYS>
NA_FN na_rows na_rows_of(const DEV int* p, const na_tile tile, int head, int heads, int extent) {
  na_rows rows;
  int pitch = heads;
  rows.base = head;
  NA_EACH_AXIS_BACK(a) {
    const na_axis axis = tile.axis[a];
    rows.base += na_product(KEYS ? axis.key0 : axis.out0, pitch);
    rows.step[a] = (KEYS ? axis.key_step : axis.out_step) * pitch;
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
  NA_EACH_AXIS(a) line += na_stretch(place.at[a], lines.step[a]);
  return line;
}

template <int RANK, bool KEYS, typename STRIDES>
NA_FN na_lines na_lines_of(const STRIDES strides, const na_tile tile, int head) {
  na_lines lines;
  lines.channel = int(strides[RANK + 2]);
  lines.head = strides[RANK + 1];
  lines.base = na_stretch(tile.batch, strides[0]) + na_stretch(head, lines.head);
  lines.step[0] = lines.step[1] = 0;
  NA_EACH_AXIS(a) {
    const na_axis axis = tile.axis[a];
    const long stride = strides[RANK - 2 + a];
    lines.base += na_stretch(KEYS ? axis.key0 : axis.out0, stride);
    lines.step[a] = na_stretch(KEYS ? axis.key_step : axis.out_step, stride);
  }
  return lines;
}

// All strides of the axes in one: what divides it divides each.
template <int RANK, typename STRIDES>
NA_FN long na_all_steps(const STRIDES strides) {
  long all = 0;
  NA_EACH_AXIS(a) all |= strides[RANK - 2 + a];
  return all;
}

template <int RANK, typename STRIDES>
NA_FN long na_line_at(const STRIDES strides, int batch, const na_point token, int head) {
  long line = na_stretch(batch, strides[0]) + na_stretch(head, strides[RANK + 1]);
  NA_EACH_AXIS(a) line += na_stretch(token.at[a], strides[RANK - 2 + a]);
  return line;
}

// ---- The heads of which rows pass by, one after the other.

struct na_one_head {};
NA_FN int na_count(const na_one_head) { return 1; }

template <int RANK, bool FINER, typename STRIDES, typename OTHERS>
struct na_heads {
  int count;
  const DEV int* p;
  STRIDES key;
  OTHERS value;
};
template <int RANK, bool FINER, typename STRIDES, typename OTHERS>
NA_FN na_heads<RANK, FINER, STRIDES, OTHERS> na_heads_of(const DEV int* p, int count,
                                                         const STRIDES key, const OTHERS value) {
  const na_heads<RANK, FINER, STRIDES, OTHERS> heads = {count, p, key, value};
  return heads;
}
template <int RANK, bool FINER, typename STRIDES, typename OTHERS>
NA_FN int na_count(const na_heads<RANK, FINER, STRIDES, OTHERS> heads) {
  return heads.count;
}

// How far ahead of the first one's rows those of a head lie, in lines of two arrays and as a number.
struct na_ahead {
  long key, value;
  int row;
};

// Of the head that slab n is of, `slabs` of each, where arrays have heads so far apart. Of a head and a
// place, as na_source_of has them, where queries are FINER.
NA_FN na_ahead na_ahead_of(const na_one_head, int, int, long, long) {
  const na_ahead none = {0, 0, 0};
  return none;
}
template <int RANK, bool FINER, typename STRIDES, typename OTHERS>
NA_FN na_ahead na_ahead_of(const na_heads<RANK, FINER, STRIDES, OTHERS> heads, int n, int slabs,
                           long key_step, long value_step) {
  int head = heads.count > 1 ? na_quotient(n, slabs) : 0;
  na_ahead ahead = {0, 0, 0};
  if (FINER) {
    int pitch = heads.p[NA_QUERY_HEADS];
    NA_EACH_AXIS_BACK(a) {
      const DEV int* axis = na_axis_of(heads.p, a);
      const int rest = na_quotient(head, axis[NA_FINER]), place = head - rest * axis[NA_FINER];
      ahead.key += place * heads.key[RANK - 2 + a];
      ahead.value += place * heads.value[RANK - 2 + a];
      ahead.row += place * pitch;
      pitch *= axis[NA_OUTPUTS];
      head = rest;
    }
  }
  ahead.key += head * key_step;
  ahead.value += head * value_step;
  ahead.row += head;
  return ahead;
}

// ---- Tables [z, y, x] of a query: slots count keys from the start of its window, bins (the entries
// of rpb) from the farthest place before it. An entry is the key's own number plus a constant.

struct na_table {
  int pitch[3];
};

template <int RANK, bool BINS>
NA_FN na_table na_table_of(const DEV int* p) {
  na_table table;
  int pitch = 1;
  NA_EACH_AXIS_BACK(a) {
    const int window = na_axis_of(p, a)[NA_KERNEL];
    table.pitch[a] = pitch;
    pitch *= BINS ? 2 * window - 1 : window;
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
