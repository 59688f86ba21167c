// Gradients of key and value: keys stay, the queries that see them pass by. Which queries see a key
// is a closed form, so there is neither a map nor an atomic.
//
// template  as attention_forward; Q and G count keys
// inputs    query key value d_out lse delta params lengths rpb
// outputs   d_key [B, *L, Hkv, D], d_value [B, *L, Hkv, DV]
// grid      items * Hkv threadgroups
constexpr int FK = (D + 7) / 8, FV = (DV + 7) / 8;
constexpr int LK = na_pitch<T, D>(), LV = na_pitch<T, DV>();
constexpr int CAPACITY = SLAB / ((LK + LV) * int(sizeof(T)) + 8);
constexpr int THREADS = 32 * G0 * G1 * G2;
threadgroup T queries[CAPACITY * LK];
threadgroup T gradients[CAPACITY * LV];
threadgroup float norms[CAPACITY];
threadgroup float shifts[CAPACITY];

const int thread_index = int(thread_index_in_threadgroup);
const int kv_heads = params[NA_KV_HEADS], group = int(threadgroup_position_in_grid.x);
const int kv_head = group % kv_heads, sharing = params[NA_HEADS] / kv_heads;
const na_lane me = na_lane_of(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_tile tile = na_key_tile(params, lengths, group / kv_heads, many);
const na_point corner = na_place<G1, G2>(thread_index / 32, few);
const na_key mine = na_key_of<Q1, Q2>(tile, corner, me.row);
const long row =
    na_row(na_key_rows(params, tile, kv_head), mine.at[0], mine.at[1], mine.at[2]);
const float scale = na_float(params[NA_SCALE]);

na_frag<T> k[FK], v[FV];
na_frag<float> dk[FK], dv[FV];
NA_UNROLL for (int f = 0; f < FK; f++) {
  k[f] = na_load<D>(key + row * D, f * 8 + me.column);
  dk[f].e[0] = dk[f].e[1] = 0.0f;
}
NA_UNROLL for (int f = 0; f < FV; f++) {
  v[f] = na_load<DV>(value + row * DV, f * 8 + me.column);
  dv[f].e[0] = dv[f].e[1] = 0.0f;
}
const na_box seeing = na_queries_seeing(tile, na_size(0, 0, 0), many);
const na_box wanted = na_queries_seeing(tile, corner, few);
const na_point reach = na_slab_size(seeing, CAPACITY);
na_clear_tails<T, D>(queries, CAPACITY, thread_index, THREADS);
na_clear_tails<T, DV>(gradients, CAPACITY, thread_index, THREADS);

for (int head = kv_head * sharing; head < (kv_head + 1) * sharing; head++)
for (int z = seeing.low[0]; z < seeing.high[0]; z += reach.at[0])
for (int y = seeing.low[1]; y < seeing.high[1]; y += reach.at[1])
for (int x = seeing.low[2]; x < seeing.high[2]; x += reach.at[2]) {
  const na_box slab = na_slab(seeing, reach, z, y, x);
  const na_rows rows = na_query_rows(params, tile, head);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, T, D>(queries, query, rows, slab, thread_index, THREADS);
  na_stage<RANK, T, DV>(gradients, d_out, rows, slab, thread_index, THREADS);
  na_stage_floats<RANK>(norms, lse, rows, slab, thread_index, THREADS);
  na_stage_floats<RANK>(shifts, delta, rows, slab, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_count n = na_count_within(wanted, slab);
  for (int i = 0; i < n.count; i += 8) {
    na_cell cell[2];
    const na_picked at = na_pick<RANK>(n, i, me, cell);
    na_frag<float> s, dp;
    s.e[0] = s.e[1] = dp.e[0] = dp.e[1] = 0.0f;
    NA_UNROLL for (int f = 0; f < FK; f++)
      na_mma(s, k[f], na_tokens_across<LK>(queries, at, me, f * 8));
    NA_UNROLL for (int f = 0; f < FV; f++)
      na_mma(dp, v[f], na_tokens_across<LV>(gradients, at, me, f * 8));

    na_frag<T> p, ds;
    NA_UNROLL for (int e = 0; e < 2; e++) {
      float weight = 0.0f, share = 0.0f;
      if (i + me.column + e < n.count && na_seen_by(mine, cell[e])) {
        float logit = s.e[e] * (scale * NA_LOG2E);
        if (BIAS)
          logit += rpb[head * params[NA_BINS] + na_bin(params, mine, tile, cell[e])] * NA_LOG2E;
        weight = na_exp2(logit - norms[at.column[e]] * NA_LOG2E);
        share = weight * (dp.e[e] - shifts[at.column[e]]);
      }
      p.e[e] = T(weight);
      ds.e[e] = T(share);
    }
    NA_UNROLL for (int f = 0; f < FV; f++)
      na_mma(dv[f], p, na_tokens_down<LV>(gradients, at, me, f * 8));
    NA_UNROLL for (int f = 0; f < FK; f++)
      na_mma(dk[f], ds, na_tokens_down<LK>(queries, at, me, f * 8));
  }
}

if (mine.stored) {
  NA_UNROLL for (int f = 0; f < FK; f++)
    na_store<D>(d_key + row * D, f * 8 + me.column, dk[f], scale);
  NA_UNROLL for (int f = 0; f < FV; f++)
    na_store<DV>(d_value + row * DV, f * 8 + me.column, dv[f], 1.0f);
}
