// Weighted sum of what sees every key: d_value = scale * attn^T . d_out over the queries that see it.
// Also the gradient of the key from that of the logits (d_out is the query then).
//
// template  T; RANK; DV; SLAB; Q0 Q1 Q2, G0 G1 G2 as attention_backward_key
// inputs    attn [B, *out, H, prod K], d_out [B, *out, H, DV], params, lengths, rpb (unused)
// outputs   d_value [B, *L, Hkv, DV]
// grid      items * Hkv threadgroups
constexpr int FV = (DV + 7) / 8, LV = na_pitch<T, DV>();
constexpr int CAPACITY = SLAB / (LV * int(sizeof(T)));
constexpr int THREADS = 32 * G0 * G1 * G2;
threadgroup T gradients[CAPACITY * LV];

const int thread_index = int(thread_index_in_threadgroup);
const int kv_heads = params[NA_KV_HEADS], group = int(threadgroup_position_in_grid.x);
const int kv_head = group % kv_heads, sharing = params[NA_HEADS] / kv_heads;
const int volume = na_volume(params);
const na_lane me = na_lane_of(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_tile tile = na_key_tile(params, lengths, group / kv_heads, many);
const na_point corner = na_place<G1, G2>(thread_index / 32, few);
const na_key mine = na_key_of<Q1, Q2>(tile, corner, me.row);
const long row =
    na_row(na_key_rows(params, tile, kv_head), mine.at[0], mine.at[1], mine.at[2]);

na_frag<float> sum[FV];
NA_UNROLL for (int f = 0; f < FV; f++) sum[f].e[0] = sum[f].e[1] = 0.0f;
const na_box seeing = na_queries_seeing(tile, na_size(0, 0, 0), many);
const na_box wanted = na_queries_seeing(tile, corner, few);
const na_point reach = na_slab_size(seeing, CAPACITY);
na_clear_tails<T, DV>(gradients, CAPACITY, thread_index, THREADS);

for (int head = kv_head * sharing; head < (kv_head + 1) * sharing; head++)
for (int z = seeing.low[0]; z < seeing.high[0]; z += reach.at[0])
for (int y = seeing.low[1]; y < seeing.high[1]; y += reach.at[1])
for (int x = seeing.low[2]; x < seeing.high[2]; x += reach.at[2]) {
  const na_box slab = na_slab(seeing, reach, z, y, x);
  const na_rows rows = na_query_rows(params, tile, head);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, T, DV>(gradients, d_out, rows, slab, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_count n = na_count_within(wanted, slab);
  for (int i = 0; i < n.count; i += 8) {
    na_cell cell[2];
    const na_picked at = na_pick<RANK>(n, i, me, cell);
    na_frag<T> p;
    NA_UNROLL for (int e = 0; e < 2; e++) {
      p.e[e] = T(0.0f);
      if (i + me.column + e >= n.count || !na_seen_by(mine, cell[e])) continue;
      const long query = na_row(rows, cell[e].at[0], cell[e].at[1], cell[e].at[2]);
      p.e[e] = attn[query * volume + na_slot(params, tile, mine, cell[e])];
    }
    NA_UNROLL for (int f = 0; f < FV; f++)
      na_mma(sum[f], p, na_tokens_down<LV>(gradients, at, me, f * 8));
  }
}

if (mine.stored)
  NA_UNROLL for (int f = 0; f < FV; f++)
    na_store<DV>(d_value + row * DV, f * 8 + me.column, sum[f], na_float(params[NA_SCALE]));
