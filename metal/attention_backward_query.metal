// Gradient of the query, delta = rowsum(d_out * out) - d_lse for the second pass, and this
// threadgroup's share of the gradient of rpb. Tiled like attention_forward.
//
// template  as attention_forward, and BINS: entries of rpb per head that a simdgroup sums in
//           threadgroup memory (0: in d_rpb itself, where they would not fit)
// inputs    query key value out d_out lse d_lse params lengths rpb
// outputs   d_query [B, *out, H, D], delta [B, *out, H] float,
//           d_rpb [H, slices * simdgroups, 2K-1 per axis] float, to be summed over its second axis
// grid      slices * H threadgroups; with BIAS each works through several items
constexpr int FK = (D + 7) / 8, FV = (DV + 7) / 8;
constexpr int LK = na_pitch<T, D>(), LV = na_pitch<T, DV>();
constexpr int CAPACITY = SLAB / ((LK + LV) * int(sizeof(T)));
constexpr int SIMDGROUPS = G0 * G1 * G2, THREADS = 32 * SIMDGROUPS;
threadgroup T keys[CAPACITY * LK];
threadgroup T values[CAPACITY * LV];
threadgroup float sums[BINS > 0 ? SIMDGROUPS * BINS : 1];

const int thread_index = int(thread_index_in_threadgroup), simdgroup = thread_index / 32;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int head = group % heads, slice = group / heads;
const int slices = int(threadgroups_per_grid.x) / heads, bins = params[NA_BINS];
const na_lane me = na_lane_of(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_point corner = na_place<G1, G2>(simdgroup, few);
const DEV float* bias = rpb + head * bins;
DEV float* d_bias = d_rpb + (long(head * slices + slice) * SIMDGROUPS + simdgroup) * bins;
const float scale = na_float(params[NA_SCALE]);

na_clear_tails<T, D>(keys, CAPACITY, thread_index, THREADS);
na_clear_tails<T, DV>(values, CAPACITY, thread_index, THREADS);
if (BIAS) na_clear_bins<BINS>(sums + simdgroup * BINS, d_bias, bins, thread_index % 32);

for (int item = slice; item < params[NA_ITEMS]; item += slices) {
  const na_tile tile = na_query_tile(params, lengths, item, many);
  const na_query mine = na_query_of<Q1, Q2>(tile, corner, me.row);
  const na_rows key_rows = na_key_rows(params, tile, head / (heads / params[NA_KV_HEADS]));
  const long row = na_row(na_query_rows(params, tile, head), mine.at[0], mine.at[1], mine.at[2]);

  na_frag<T> q[FK], g_out[FV];
  na_frag<float> sum[FK];
  float dot_out = 0.0f;
  NA_UNROLL for (int f = 0; f < FK; f++) {
    q[f] = na_load<D>(query + row * D, f * 8 + me.column);
    sum[f].e[0] = sum[f].e[1] = 0.0f;
  }
  NA_UNROLL for (int f = 0; f < FV; f++) {
    g_out[f] = na_load<DV>(d_out + row * DV, f * 8 + me.column);
    const na_frag<T> o = na_load<DV>(out + row * DV, f * 8 + me.column);
    NA_UNROLL for (int e = 0; e < 2; e++) dot_out += float(g_out[f].e[e]) * float(o.e[e]);
  }
  dot_out = na_row_sum(dot_out);  // by all lanes, live or not
  const float shift = mine.live ? dot_out - d_lse[row] : 0.0f;
  const float norm = mine.live ? lse[row] * NA_LOG2E : 0.0f;
  if (mine.stored && me.column == 0) delta[row] = shift;

  const na_box seen = na_keys_seen(tile, na_size(0, 0, 0), many);
  const na_box wanted = na_keys_seen(tile, corner, few);
  const na_point reach = na_slab_size(seen, CAPACITY);
  for (int z = seen.low[0]; z < seen.high[0]; z += reach.at[0])
  for (int y = seen.low[1]; y < seen.high[1]; y += reach.at[1])
  for (int x = seen.low[2]; x < seen.high[2]; x += reach.at[2]) {
    const na_box slab = na_slab(seen, reach, z, y, x);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    na_stage<RANK, T, D>(keys, key, key_rows, slab, thread_index, THREADS);
    na_stage<RANK, T, DV>(values, value, key_rows, slab, thread_index, THREADS);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const na_count n = na_count_within(wanted, slab);
    for (int i = 0; i < n.count; i += 8) {
      na_cell cell[2];
      const na_picked at = na_pick<RANK>(n, i, me, cell);
      na_frag<float> s, dp;
      s.e[0] = s.e[1] = dp.e[0] = dp.e[1] = 0.0f;
      NA_UNROLL for (int f = 0; f < FK; f++)
        na_mma(s, q[f], na_tokens_across<LK>(keys, at, me, f * 8));
      NA_UNROLL for (int f = 0; f < FV; f++)
        na_mma(dp, g_out[f], na_tokens_across<LV>(values, at, me, f * 8));

      na_frag<T> ds;
      float share[2];
      int bin[2];
      NA_UNROLL for (int e = 0; e < 2; e++) {
        const bool in = i + me.column + e < n.count && na_sees(mine, cell[e]);
        bin[e] = BIAS && in ? na_bin(params, mine, cell[e]) : -1;
        const float logit = s.e[e] * (scale * NA_LOG2E) + (BIAS && in ? bias[bin[e]] * NA_LOG2E : 0.0f);
        share[e] = in ? na_exp2(logit - norm) * (dp.e[e] - shift) : 0.0f;
        ds.e[e] = T(share[e]);
      }
      NA_UNROLL for (int f = 0; f < FK; f++)
        na_mma(sum[f], ds, na_tokens_down<LK>(keys, at, me, f * 8));
      if (BIAS)
        na_add_to_bins<BINS>(sums + simdgroup * BINS, d_bias, me, bin[0], share[0], bin[1],
                             share[1]);
    }
  }
  if (mine.stored)
    NA_UNROLL for (int f = 0; f < FK; f++)
      na_store<D>(d_query + row * D, f * 8 + me.column, sum[f], mine.live ? scale : 0.0f);
}
if (BIAS) na_write_bins<BINS>(sums + simdgroup * BINS, d_bias, bins, thread_index % 32);
else if (group == 0 && thread_index == 0) d_rpb[0] = 0.0f;
