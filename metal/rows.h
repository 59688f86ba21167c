// Fragments: from and to rows of device memory, and sums per relative position.

// A bias in powers of 2. However low, it stays above the logits of keys outside a window.
NA_FN float na_bias(float x) { return (x < NA_LEAST_BIAS ? NA_LEAST_BIAS : x) * NA_LOG2E; }

// What to add to a logit: its mask, or its bias where that is 0. All lanes read one, whatever they see,
// so that none is away when they exchange the next.
NA_FN float na_biased(float mask, const DEV float* bias, int bin) {
  const float more = na_bias(bias[mask == 0.0f ? bin : 0]);
  return mask == 0.0f ? more : mask;
}

// ---- Rows of device memory, zero beyond D and where they are not live, for what lies there is masked
// by adding to it.

// How many elements of its rows [D] a lane moves at once.
template <int D, typename T>
NA_FN constexpr int na_wide() {
  constexpr int ALL = D | na_run<na_frags<D>()>() | 16 / int(sizeof(T));
  return ALL & -ALL;  // the largest power of two that divides all three
}

template <int D, int WIDE, typename T>
NA_FN void na_load_row(THR na_frag<T>* part, int h, const DEV T* row, long channel, na_lane me,
                       bool live) {
  constexpr int F = na_frags<D>();
  NA_UNROLL for (int n = 0; n < F * NA_WIDE; n += WIDE) {
    const int d = na_channel<F>(me, n);
    na_pack<T, WIDE> pack = {};
    if (live && (D == na_padded<D>() || d < D)) pack = *(const DEV na_pack<T, WIDE>*)(row + (WIDE > 1 ? d : d * channel));
    NA_UNROLL for (int i = 0; i < WIDE; i++)
      part[(n + i) / NA_WIDE].e[h * NA_WIDE + (n + i) % NA_WIDE] = pack.e[i];
  }
  NA_UNROLL for (int n = 0; n < F * NA_WIDE; n += 2)
    na_join(&part[n / NA_WIDE].e[h * NA_WIDE + n % NA_WIDE]);
}

// The rows of a team, `rows` being those that the lane looks after. Here and below lanes first exchange
// what they know, then branch, and are together again in the end: no compiler has to see to that.
template <int RANK, int D, typename T, typename STRIDES, typename ROW>
NA_FN void na_load_rows(THR na_frag<T>* part, const DEV T* array, const STRIDES strides, int batch,
                        int head, const THR ROW* rows, na_lane me) {
  constexpr int WIDE = na_wide<D, T>();
  const long channel = strides[RANK + 2];
  na_home mine[NA_ROWS], home[NA_HELD];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    mine[h].row = na_line_at<RANK>(strides, batch, rows[h].token, head);
    mine[h].stored = rows[h].stored;
    mine[h].live = rows[h].live;
  }
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) home[h] = na_home_of(mine, h);
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) {
    const DEV T* row = array + home[h].row;
    if (channel == 1 && na_aligned(row, WIDE))
      na_load_row<D, WIDE>(part, h, row, 1, me, home[h].live);
    else na_load_row<D, 1>(part, h, row, channel, me, home[h].live);
  }
  simdgroup_barrier(mem_flags::mem_none);
}

// Stores them in a contiguous array, `ahead` rows after their own, each times its factor.
template <int D, typename T, typename ROW>
NA_FN void na_store_rows(DEV T* array, const THR na_frag<float>* part, const THR ROW* rows,
                         const THR float* factor, na_lane me, int ahead = 0) {
  constexpr int F = na_frags<D>(), WIDE = na_wide<D, T>();
  na_home home[NA_HELD];
  float times[NA_HELD];
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) {
    home[h] = na_home_of(rows, h);
    times[h] = na_held(factor, h);
  }
  NA_UNROLL for (int h = 0; h < NA_HELD; h++) {
    if (!home[h].stored) continue;
    NA_UNROLL for (int n = 0; n < F * NA_WIDE; n += WIDE) {
      const int d = na_channel<F>(me, n);
      na_pack<T, WIDE> pack;
      NA_UNROLL for (int i = 0; i < WIDE; i++)
        pack.e[i] = T(part[(n + i) / NA_WIDE].e[h * NA_WIDE + (n + i) % NA_WIDE] * times[h]);
      if (D == na_padded<D>() || d < D) *(DEV na_pack<T, WIDE>*)(array + (home[h].row + ahead) * D + d) = pack;
    }
  }
  simdgroup_barrier(mem_flags::mem_none);
}

// The same with one factor for all.
template <int D, typename T, typename ROW>
NA_FN void na_store_rows(DEV T* array, const THR na_frag<float>* part, const THR ROW* rows,
                         float factor, na_lane me, int ahead = 0) {
  float factors[NA_ROWS];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) factors[h] = factor;
  na_store_rows<D>(array, part, rows, factors, me, ahead);
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

// ---- Logits on which all passes agree. What a core sums up depends in its last bits on the order, and
// of large logits these bits are powers of 2: a weight would be off by as much. Where the core does not
// promise the same sums in all passes (NA_SAME_DOTS) the backward ones take the products of rows with
// large logits one after the other, from device memory: slow, and hardly ever needed.

#define NA_LARGE 256.0f  // from where on a row's largest logit, in powers of 2, is large

struct na_stats {
  float top;      // a logit near the largest one, in powers of 2
  float log_sum;  // log2 of the sum of 2^(logit - top)
};

NA_FN na_stats na_stats_of(const DEV float* stats, long row, bool live) {
  na_stats of = {0.0f, 0.0f};
  if (live) {
    of.top = stats[row * 2];
    of.log_sum = stats[row * 2 + 1];
  }
  return of;
}

NA_FN bool na_is_large(const na_stats of) {
  return !NA_SAME_DOTS && na_fmax(of.top, -of.top) > NA_LARGE;
}

template <int D, typename T, typename OTHER>
NA_FN float na_plain_dot(const DEV T* row, int step, OTHER other, int other_step) {
  float dot = 0.0f;
  NA_ROLLED for (int d = 0; d < D; d++)
    dot = na_multiply_add(float(row[d * step]), float(other[d * other_step]), dot);
  return dot;
}

// The stats of a query, of logits that are computed so.
template <int RANK, bool BIAS, int D, typename T>
NA_FN na_stats na_recount(const na_mine mine, const DEV T* query, int query_step,
                          const DEV T* key, const na_lines lines, const na_table bins,
                          const DEV float* bias, float scale) {
  const na_sight sight = mine.sight;
  float top = NA_MASKED, sum = 0.0f;
  for (int z = 0; z < (RANK > 2 ? sight.count[0] : 1); z++)
    for (int y = 0; y < (RANK > 1 ? sight.count[1] : 1); y++)
      for (int x = 0; x < sight.count[2]; x++) {
        na_point token = na_size(z, y, x);
        NA_EACH_AXIS(a) token.at[a] += sight.first[a];
        const DEV T* one = key + na_line<RANK>(lines, token);
        const float dot = na_plain_dot<D>(query, query_step, one, lines.channel);
        const float more = BIAS ? na_bias(bias[mine.bin + na_entry<RANK>(bins, token)]) : 0.0f;
        const float logit = na_multiply_add(dot, scale, more), higher = na_fmax(top, logit);
        sum = sum * na_exp2(top - higher) + na_exp2(logit - higher);
        top = higher;
      }
  const na_stats of = {top, na_log2(sum)};
  return of;
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
        NA_UNROLL for (int e = h * NA_PER_ROW; e < (h + 1) * NA_PER_ROW; e++) {
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
