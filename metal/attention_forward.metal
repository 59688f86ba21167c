// Neighborhood attention: out = softmax(scale * query . key + rpb) value, and the log-sum-exp.
//
// template  T; RANK; D, DV (head dims of query/key and of value); BIAS; SLAB (bytes);
//           Q0 Q1 Q2 (the 8 queries of a simdgroup), G0 G1 G2 (simdgroups of a threadgroup)
// inputs    query [B, *out, H, D], key [B, *L, Hkv, D], value [B, *L, Hkv, DV], params, lengths,
//           rpb [H, 2K-1 per axis] float
// outputs   out [B, *out, H, DV], lse [B, *out, H] float
// grid      items * H threadgroups
constexpr int FK = (D + 7) / 8, FV = (DV + 7) / 8;  // fragments of a row
constexpr int LK = na_pitch<T, D>(), LV = na_pitch<T, DV>();
constexpr int CAPACITY = SLAB / ((LK + LV) * int(sizeof(T)));
constexpr int THREADS = 32 * G0 * G1 * G2, STEP = 4;  // fragments between two rescalings
threadgroup T keys[CAPACITY * LK];
threadgroup T values[CAPACITY * LV];

const int thread_index = int(thread_index_in_threadgroup);
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int head = group % heads;
const na_lane me = na_lane_of(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_tile tile = na_query_tile(params, lengths, group / heads, many);
const na_point corner = na_place<G1, G2>(thread_index / 32, few);
const na_query mine = na_query_of<Q1, Q2>(tile, corner, me.row);
const na_rows query_rows = na_query_rows(params, tile, head);
const na_rows key_rows = na_key_rows(params, tile, head / (heads / params[NA_KV_HEADS]));
const long row = na_row(query_rows, mine.at[0], mine.at[1], mine.at[2]);
const DEV float* bias = rpb + head * params[NA_BINS];
const float scale = na_float(params[NA_SCALE]) * NA_LOG2E;

na_frag<T> q[FK];
na_frag<float> sum[FV];
NA_UNROLL for (int f = 0; f < FK; f++) q[f] = na_load<D>(query + row * D, f * 8 + me.column);
NA_UNROLL for (int f = 0; f < FV; f++) sum[f].e[0] = sum[f].e[1] = 0.0f;
float top = NA_LOWEST, total = 0.0f;  // running maximum (of log2 logits) and sum of my query

const na_box seen = na_keys_seen(tile, na_size(0, 0, 0), many);
const na_box wanted = na_keys_seen(tile, corner, few);
const na_point reach = na_slab_size(seen, CAPACITY);
na_clear_tails<T, D>(keys, CAPACITY, thread_index, THREADS);
na_clear_tails<T, DV>(values, CAPACITY, thread_index, THREADS);

for (int z = seen.low[0]; z < seen.high[0]; z += reach.at[0])
for (int y = seen.low[1]; y < seen.high[1]; y += reach.at[1])
for (int x = seen.low[2]; x < seen.high[2]; x += reach.at[2]) {
  const na_box slab = na_slab(seen, reach, z, y, x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, T, D>(keys, key, key_rows, slab, thread_index, THREADS);
  na_stage<RANK, T, DV>(values, value, key_rows, slab, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_count n = na_count_within(wanted, slab);
  for (int i = 0; i < n.count; i += 8 * STEP) {
    na_frag<float> s[STEP];
    na_picked at[STEP];
    float best = top;
    NA_UNROLL for (int g = 0; g < STEP; g++) {
      s[g].e[0] = s[g].e[1] = NA_MASKED;
      if (i + g * 8 >= n.count) continue;
      na_cell cell[2];
      at[g] = na_pick<RANK>(n, i + g * 8, me, cell);
      na_frag<float> dot;
      dot.e[0] = dot.e[1] = 0.0f;
      NA_UNROLL for (int f = 0; f < FK; f++)
        na_mma(dot, q[f], na_tokens_across<LK>(keys, at[g], me, f * 8));
      NA_UNROLL for (int e = 0; e < 2; e++) {
        if (i + g * 8 + me.column + e >= n.count || !na_sees(mine, cell[e])) continue;
        s[g].e[e] = dot.e[e] * scale;
        if (BIAS) s[g].e[e] += bias[na_bin(params, mine, cell[e])] * NA_LOG2E;
      }
      best = na_fmax(best, na_fmax(s[g].e[0], s[g].e[1]));
    }
    best = na_row_max(best);
    const float shrink = na_exp2(top - best);
    top = best;
    total *= shrink;
    NA_UNROLL for (int f = 0; f < FV; f++) {
      sum[f].e[0] *= shrink;
      sum[f].e[1] *= shrink;
    }
    NA_UNROLL for (int g = 0; g < STEP; g++) {
      if (i + g * 8 >= n.count) continue;
      na_frag<T> p;
      NA_UNROLL for (int e = 0; e < 2; e++) {
        const float weight = na_exp2(s[g].e[e] - best);
        total += weight;
        p.e[e] = T(weight);
      }
      NA_UNROLL for (int f = 0; f < FV; f++)
        na_mma(sum[f], p, na_tokens_down<LV>(values, at[g], me, f * 8));
    }
  }
}

total = na_row_sum(total);
if (mine.stored) {
  const float norm = mine.live ? 1.0f / total : 0.0f;
  NA_UNROLL for (int f = 0; f < FV; f++)
    na_store<DV>(out + row * DV, f * 8 + me.column, sum[f], norm);
  if (me.column == 0)
    lse[row] = mine.live ? (top + na_log2(total)) * NA_LN2 : na_float(NA_MINUS_INFINITY);
}
