// Logits of every query and slot: scale * query . key + rpb; also the gradient of attention weights,
// d_out . value.
//
// template  T; RANK; D; BIAS; SLAB; Q0 Q1 Q2, G0 G1 G2 as attention_forward
// inputs    query [B, *out, H, D], key [B, *L, Hkv, D], params, lengths, rpb
// outputs   logits [B, *out, H, prod K]; slots without a key hold params[NA_FILL]
// grid      items * H threadgroups
constexpr int FK = (D + 7) / 8, LK = na_pitch<T, D>();
constexpr int CAPACITY = SLAB / (LK * int(sizeof(T)));
constexpr int THREADS = 32 * G0 * G1 * G2;
threadgroup T keys[CAPACITY * LK];

const int thread_index = int(thread_index_in_threadgroup);
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int head = group % heads;
const na_lane me = na_lane_of(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_tile tile = na_query_tile(params, lengths, group / heads, many);
const na_point corner = na_place<G1, G2>(thread_index / 32, few);
const na_query mine = na_query_of<Q1, Q2>(tile, corner, me.row);
const na_rows key_rows = na_key_rows(params, tile, head / (heads / params[NA_KV_HEADS]));
const long row = na_row(na_query_rows(params, tile, head), mine.at[0], mine.at[1], mine.at[2]);
const DEV float* bias = rpb + head * params[NA_BINS];
const int volume = na_volume(params);
DEV T* slots = logits + row * volume;
const float scale = na_float(params[NA_SCALE]);

na_frag<T> q[FK];
NA_UNROLL for (int f = 0; f < FK; f++) q[f] = na_load<D>(query + row * D, f * 8 + me.column);
if (mine.stored && !na_whole(mine, volume))
  for (int i = me.column / 2; i < volume; i += 4) slots[i] = T(na_float(params[NA_FILL]));
simdgroup_barrier(mem_flags::mem_device);

const na_box seen = na_keys_seen(tile, na_size(0, 0, 0), many);
const na_box wanted = na_keys_seen(tile, corner, few);
const na_point reach = na_slab_size(seen, CAPACITY);
na_clear_tails<T, D>(keys, CAPACITY, thread_index, THREADS);
for (int z = seen.low[0]; z < seen.high[0]; z += reach.at[0])
for (int y = seen.low[1]; y < seen.high[1]; y += reach.at[1])
for (int x = seen.low[2]; x < seen.high[2]; x += reach.at[2]) {
  const na_box slab = na_slab(seen, reach, z, y, x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, T, D>(keys, key, key_rows, slab, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_count n = na_count_within(wanted, slab);
  for (int i = 0; i < n.count; i += 8) {
    na_cell cell[2];
    const na_picked at = na_pick<RANK>(n, i, me, cell);
    na_frag<float> s;
    s.e[0] = s.e[1] = 0.0f;
    NA_UNROLL for (int f = 0; f < FK; f++)
      na_mma(s, q[f], na_tokens_across<LK>(keys, at, me, f * 8));
    NA_UNROLL for (int e = 0; e < 2; e++) {
      if (i + me.column + e >= n.count || !na_sees(mine, cell[e])) continue;
      float logit = s.e[e] * scale;
      if (BIAS) logit += bias[na_bin(params, mine, cell[e])];
      slots[na_slot(params, mine, cell[e])] = T(logit);
    }
  }
}
