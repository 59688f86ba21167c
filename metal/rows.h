// Fragments: from and to rows of device memory, and sums per relative position.

// A bias in powers of 2. However low, it stays above the logits of keys outside a window.
NA_FN float na_bias(float x) { return (x < NA_LEAST_BIAS ? NA_LEAST_BIAS : x) * NA_LOG2E; }

// ---- Rows of device memory, zero beyond D and where they are not live, for what lies there is masked
// by adding to it: element e is column e % 2 of row e / 2.

template <int D, int WIDE, typename T>
NA_FN void na_load_by(THR na_frag<T>* part, int h, const DEV T* row, na_lane me, bool live) {
  NA_UNROLL for (int f = 0; f < (D + 7) / 8; f++)
    NA_UNROLL for (int e = 0; e < 2; e += WIDE) {
      const int d = f * 8 + me.column + e;
      na_pack<T, WIDE> pack = {};
      if (live && (D % 8 == 0 || d < D)) pack = *(const DEV na_pack<T, WIDE>*)(row + d);
      NA_UNROLL for (int i = 0; i < WIDE; i++) part[f].e[h * 2 + e + i] = pack.e[i];
    }
}

template <int D, typename T>
NA_FN void na_load(THR na_frag<T>* part, int h, const DEV T* row, na_lane me, bool live) {
  if (D % 2 == 0 && na_aligned(row, 2)) na_load_by<D, D % 2 ? 1 : 2>(part, h, row, me, live);
  else na_load_by<D, 1>(part, h, row, me, live);
}

template <int D, typename T>
NA_FN void na_store(DEV T* row, const THR na_frag<float>* part, int h, na_lane me, float factor) {
  NA_UNROLL for (int f = 0; f < (D + 7) / 8; f++) {
    const int d = f * 8 + me.column;
    const na_pack<T, 2> pair = {{T(part[f].e[h * 2] * factor), T(part[f].e[h * 2 + 1] * factor)}};
    if (D % 2 == 0) {
      if (D % 8 == 0 || d < D) *(DEV na_pack<T, 2>*)(row + d) = pair;
    } else {
      NA_UNROLL for (int e = 0; e < 2; e++)
        if (d + e < D) row[d + e] = pair.e[e];
    }
  }
}

template <int F>
NA_FN void na_clear(THR na_frag<float>* part) {
  NA_UNROLL for (int f = 0; f < F; f++)
    NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) part[f].e[e] = 0.0f;
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

// Adds a fragment to its bins (-1: to none), one query after the other: the keys of one query are at
// different distances, so that no two lanes meet.
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
