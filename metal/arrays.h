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

// All strides of the axes in one: what divides it divides each.
template <int RANK, typename STRIDES>
NA_FN long na_all_steps(const STRIDES strides) {
  long all = 0;
  NA_EACH_AXIS(a) all |= strides[RANK - 2 + a];
  return all;
}

template <int RANK, typename STRIDES>
NA_FN long na_line_at(const STRIDES strides, int batch, const na_point token, int head) {
  long line = batch * strides[0] + head * strides[RANK + 1];
  NA_EACH_AXIS(a) line += token.at[a] * strides[RANK - 2 + a];
  return line;
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
