// Weighted sum of what every query sees: out = scale * attn . value over its slots. Also the
// gradient of the query from that of the logits (value is the key then) and, with SUMS, of rpb.
//
// template  T; RANK; DV; SUMS; BINS; SLAB; Q0 Q1 Q2, G0 G1 G2 as attention_backward_query
// inputs    attn [B, *out, H, prod K], value [B, *L, Hkv, DV], params, lengths, rpb (unused)
// outputs   out [B, *out, H, DV], d_rpb [H, slices * simdgroups, 2K-1 per axis] float
// grid      slices * H threadgroups; with SUMS each works through several items
constexpr int FV = (DV + 7) / 8, LV = na_pitch<T, DV>();
constexpr int CAPACITY = SLAB / (LV * int(sizeof(T)));
constexpr int SIMDGROUPS = G0 * G1 * G2, THREADS = 32 * SIMDGROUPS;
threadgroup T values[CAPACITY * LV];
threadgroup float sums[BINS > 0 ? SIMDGROUPS * BINS : 1];

const int thread_index = int(thread_index_in_threadgroup), simdgroup = thread_index / 32;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int head = group % heads, slice = group / heads;
const int slices = int(threadgroups_per_grid.x) / heads, bins = params[NA_BINS];
const na_lane me = na_lane_of(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_point corner = na_place<G1, G2>(simdgroup, few);
const float scale = na_float(params[NA_SCALE]);
DEV float* d_bias = d_rpb + (long(head * slices + slice) * SIMDGROUPS + simdgroup) * bins;

na_clear_tails<T, DV>(values, CAPACITY, thread_index, THREADS);
if (SUMS) na_clear_bins<BINS>(sums + simdgroup * BINS, d_bias, bins, thread_index % 32);

for (int item = slice; item < params[NA_ITEMS]; item += slices) {
  const na_tile tile = na_query_tile(params, lengths, item, many);
  const na_query mine = na_query_of<Q1, Q2>(tile, corner, me.row);
  const na_rows key_rows = na_key_rows(params, tile, head / (heads / params[NA_KV_HEADS]));
  const long row = na_row(na_query_rows(params, tile, head), mine.at[0], mine.at[1], mine.at[2]);
  const DEV T* slots = attn + row * na_volume(params);
  na_frag<float> sum[FV];
  NA_UNROLL for (int f = 0; f < FV; f++) sum[f].e[0] = sum[f].e[1] = 0.0f;

  const na_box seen = na_keys_seen(tile, na_size(0, 0, 0), many);
  const na_box wanted = na_keys_seen(tile, corner, few);
  const na_point reach = na_slab_size(seen, CAPACITY);
  for (int z = seen.low[0]; z < seen.high[0]; z += reach.at[0])
  for (int y = seen.low[1]; y < seen.high[1]; y += reach.at[1])
  for (int x = seen.low[2]; x < seen.high[2]; x += reach.at[2]) {
    const na_box slab = na_slab(seen, reach, z, y, x);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    na_stage<RANK, T, DV>(values, value, key_rows, slab, thread_index, THREADS);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const na_count n = na_count_within(wanted, slab);
    for (int i = 0; i < n.count; i += 8) {
      na_cell cell[2];
      const na_picked at = na_pick<RANK>(n, i, me, cell);
      na_frag<T> p;
      int bin[2];
      NA_UNROLL for (int e = 0; e < 2; e++) {
        const bool in = i + me.column + e < n.count && na_sees(mine, cell[e]);
        p.e[e] = in ? slots[na_slot(params, mine, cell[e])] : T(0.0f);
        bin[e] = SUMS && in ? na_bin(params, mine, cell[e]) : -1;
      }
      NA_UNROLL for (int f = 0; f < FV; f++)
        na_mma(sum[f], p, na_tokens_down<LV>(values, at, me, f * 8));
      if (SUMS)
        na_add_to_bins<BINS>(sums + simdgroup * BINS, d_bias, me, bin[0], float(p.e[0]), bin[1],
                             float(p.e[1]));
    }
  }
  if (mine.stored)
    NA_UNROLL for (int f = 0; f < FV; f++)
      na_store<DV>(out + row * DV, f * 8 + me.column, sum[f], scale);
}
if (SUMS) na_write_bins<BINS>(sums + simdgroup * BINS, d_bias, bins, thread_index % 32);
else if (group == 0 && thread_index == 0) d_rpb[0] = 0.0f;
