// Teams of a whole simdgroup, as the cores have them that multiply matrices: four lanes share a row,
// and each holds NA_BESIDE neighboring numbers of every four times as many.

// The channel of element n of a lane's F fragments, and how many elements lie side by side.
template <int F>
NA_FN int na_channel(na_lane me, int n) {
  return na_first<F>(me) + na_behind(n) + me.column;
}
template <int F>
NA_FN constexpr int na_run() {
  return NA_BESIDE;
}

// What belongs to the row h that a lane holds: it is one of those that it looks after.
NA_FN float na_held(const THR float* of_rows, int h) { return of_rows[h]; }
template <typename ROW>
NA_FN na_home na_home_of(const THR ROW* rows, int h) {
  const na_home home = {rows[h].row, rows[h].stored, rows[h].live};
  return home;
}

NA_FN void na_share(THR na_picked&) {}
NA_FN bool na_team_any(bool x) { return na_any(x); }
// Behind a branch that some lanes took, before what they do together.
NA_FN void na_together() { simdgroup_barrier(mem_flags::mem_none); }

// Reductions over the lanes that share a row.
NA_FN float na_row_sum(float x) {
  x += na_lane_xor(x, 1);
  return x + na_lane_xor(x, NA_SECOND_LANE);
}
NA_FN float na_row_max(float x) {
  x = na_fmax(x, na_lane_xor(x, 1));
  return na_fmax(x, na_lane_xor(x, NA_SECOND_LANE));
}

// The sum of left * right over F fragments of row h.
template <int F, typename T>
NA_FN float na_row_dot(const THR na_frag<T>* left, const THR na_frag<T>* right, int h) {
  float dot = 0.0f;
  NA_UNROLL for (int f = 0; f < F; f++)
    NA_UNROLL for (int e = h * NA_WIDE; e < (h + 1) * NA_WIDE; e++)
      dot += float(left[f].e[e]) * float(right[f].e[e]);
  return na_row_sum(dot);
}
