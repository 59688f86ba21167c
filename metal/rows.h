// Fragments: from and to rows of device memory, and sums per relative position.

// A bias in powers of 2. However low, it stays above the logits of keys outside a window.
NA_FN float na_bias(float x) { return (x < NA_LEAST_BIAS ? NA_LEAST_BIAS : x) * NA_LOG2E; }

// ---- Rows of device memory, zero beyond D and where they are not live, for what lies there is masked
// by adding to it.

// How many elements of its rows [D] a lane moves at once.
template <int D, typename T>
NA_FN constexpr int na_wide() {
  constexpr int ALL = D | na_run<(D + 7) / 8>() | 16 / int(sizeof(T));
  return ALL & -ALL;  // the largest power of two that divides all three
}

template <int D, int WIDE, typename T>
NA_FN void na_load_row(THR na_frag<T>* part, int h, const DEV T* row, na_lane me, bool live) {
  constexpr int F = (D + 7) / 8;
  NA_UNROLL for (int n = 0; n < F * NA_WIDE; n += WIDE) {
    const int d = na_channel<F>(me, n);
    na_pack<T, WIDE> pack = {};
    if (live && (D % 8 == 0 || d < D)) pack = *(const DEV na_pack<T, WIDE>*)(row + d);
    NA_UNROLL for (int i = 0; i < WIDE; i++)
      part[(n + i) / NA_WIDE].e[h * NA_WIDE + (n + i) % NA_WIDE] = pack.e[i];
  }
}

// The rows of a team, `rows` being those that the lane looks after.
template <int D, typename T, typename ROW>
NA_FN void na_load_rows(THR na_frag<T>* part, const DEV T* array, const THR ROW* rows, na_lane me) {
  constexpr int WIDE = na_wide<D, T>();
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) {
    const na_home home = na_home_of(rows, h);
    const DEV T* row = array + home.row * D;
    if (na_aligned(row, WIDE)) na_load_row<D, WIDE>(part, h, row, me, home.live);
    else na_load_row<D, 1>(part, h, row, me, home.live);
  }
}

// Stores them, each times its factor.
template <int D, typename T, typename ROW>
NA_FN void na_store_rows(DEV T* array, const THR na_frag<float>* part, const THR ROW* rows,
                         const THR float* factor, na_lane me) {
  constexpr int F = (D + 7) / 8, WIDE = na_wide<D, T>();
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) {
    const na_home home = na_home_of(rows, h);
    const float times = na_held(factor, h);
    if (!home.stored) continue;
    NA_UNROLL for (int n = 0; n < F * NA_WIDE; n += WIDE) {
      const int d = na_channel<F>(me, n);
      na_pack<T, WIDE> pack;
      NA_UNROLL for (int i = 0; i < WIDE; i++)
        pack.e[i] = T(part[(n + i) / NA_WIDE].e[h * NA_WIDE + (n + i) % NA_WIDE] * times);
      if (D % 8 == 0 || d < D) *(DEV na_pack<T, WIDE>*)(array + home.row * D + d) = pack;
    }
  }
}

// The same with one factor for all.
template <int D, typename T, typename ROW>
NA_FN void na_store_rows(DEV T* array, const THR na_frag<float>* part, const THR ROW* rows,
                         float factor, na_lane me) {
  float factors[NA_ROWS];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) factors[h] = factor;
  na_store_rows<D>(array, part, rows, factors, me);
}

// Multiplies each row by its factor.
template <int F>
NA_FN void na_scale_rows(THR na_frag<float>* part, const THR float* factor) {
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) {
    const float times = na_held(factor, h);
    NA_UNROLL for (int f = 0; f < F; f++)
      NA_UNROLL for (int e = h * NA_WIDE; e < (h + 1) * NA_WIDE; e++) part[f].e[e] *= times;
  }
}

template <int F>
NA_FN void na_clear(THR na_frag<float>* part) {
  NA_UNROLL for (int f = 0; f < F; f++)
    NA_UNROLL for (int e = 0; e < NA_HELD * NA_WIDE; e++) part[f].e[e] = 0.0f;
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

// Adds pairs to their bins (-1: to none), one query after the other: the keys of one query are at
// different distances, so that no two lanes meet. For teams of a whole simdgroup.
template <int NEAR>
NA_FN void na_add_to_bins(TGP float* sums, DEV float* total, na_lane me, const THR int* bin,
                          const THR float* value) {
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    for (int row = 0; row < 8; row++) {
      if (row == me.row)
        NA_UNROLL for (int e = h * 2; e < h * 2 + 2; e++) {
          if (bin[e] < 0) continue;
          if (NEAR > 0) sums[bin[e]] += value[e];
          else total[bin[e]] += value[e];
        }
      simdgroup_barrier(NEAR > 0 ? mem_flags::mem_threadgroup : mem_flags::mem_device);
    }
}

template <int NEAR>
NA_FN void na_write_bins(TGP float* sums, DEV float* total, int bins, int lane) {
  if (NEAR > 0)
    for (int i = lane; i < bins; i += 32) total[i] = sums[i];
}
