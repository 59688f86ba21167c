// Neighborhood attention: out = softmax(scale * query . key + rpb) value, and the log-sum-exp.
//
// template  T; RANK; PLAIN (neither dilation, stride, window_stride, causal axis nor lengths);
//           D, DV (head dims of query/key and of value); BIAS; SLAB (bytes);
//           Q0 Q1 Q2 (the queries of a simdgroup), G0 G1 G2 (simdgroups of a threadgroup),
//           E1 (rows in which the eight keys of a fragment lie)
// inputs    query [B, *out, H, D], key [B, *L, Hkv, D], value [B, *L, Hkv, DV], params, lengths,
//           rpb [H, 2K-1 per axis] float
// outputs   out [B, *out, H, DV], lse [B, *out, H] float
// grid      items * H threadgroups
typedef na_eight<RANK, E1> EIGHT;
constexpr int FK = (D + 7) / 8, FV = (DV + 7) / 8;  // fragments of a row
constexpr int LK = na_pitch<T, D>(), LV = na_pitch<T, DV>();
constexpr int CAPACITY = SLAB / ((LK + LV) * int(sizeof(T)));
constexpr int THREADS = 32 * G0 * G1 * G2, DEEP = EIGHT::DEEP;
constexpr int STEP = NA_ROWS;  // fragments between two looks at the maximum
constexpr float SLACK = 8.0f;  // weights may reach 2^8 before all are rescaled
threadgroup T keys[CAPACITY * LK];
threadgroup T values[CAPACITY * LV];

const uint thread_index = thread_index_in_threadgroup;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, heads), head = group - item * heads;
const na_lane me = na_lane_of<T>(thread_index % 32);
const na_point few = na_size(Q0, Q1, Q2), many = na_size(G0 * Q0, G1 * Q1, G2 * Q2);
const na_tile tile = na_query_tile<RANK, PLAIN>(params, lengths, item, many);
const na_point corner = na_place<G1, G2>(thread_index / 32, few);
const na_rows rows = na_query_rows<RANK>(params, tile, head);
const int kv_head = na_quotient(head, params[NA_SHARING]);
const na_rows key_rows = na_key_rows<RANK>(params, tile, kv_head);
const na_table bins = na_bins<RANK>(params);
const DEV float* bias = rpb + head * params[NA_BINS];
const float scale = na_float(params[NA_SCALE]) * NA_LOG2E;

na_query mine[NA_ROWS];
float top[NA_ROWS], total[NA_ROWS];  // of my queries: about the maximum (of log2 logits), and sum
na_frag<T> q[FK];
na_frag<float> sum[FV];
na_clear<FV>(sum);
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  const na_point place = na_place<Q1, Q2>(h * 8 + me.row, na_size(1, 1, 1));
  mine[h] = na_query_at<RANK>(params, tile, rows, corner, place);
  na_load<D>(q, h, query + mine[h].row * D, me);
  top[h] = NA_LOWEST;
  total[h] = 0.0f;
}

const na_box seen = na_keys_seen<RANK>(tile, na_size(0, 0, 0), many);
const na_box wanted = na_keys_seen<RANK>(tile, corner, few);
const na_point reach = na_slab_size<RANK>(seen, CAPACITY);
na_clear_tails<THREADS, D>(keys, CAPACITY, thread_index);
na_clear_tails<THREADS, DV>(values, CAPACITY, thread_index);

NA_EACH_SLAB(seen, reach) {
  const na_box slab = na_slab<RANK>(seen, reach, z, y, x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, THREADS, D, DV>(keys, key, values, value, key_rows, slab, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_walk walk = na_walk_over<EIGHT>(wanted, slab);
  na_sight sight[NA_ROWS];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) sight[h] = na_clip<RANK>(mine[h].sight, slab);
  NA_EACH_COLUMN(walk) {
    const na_column column = na_column_at<EIGHT>(walk, sight, cz, cx, me);
    for (int i = 0; i < walk.depth; i += DEEP * STEP) {
      na_frag<float> s[STEP];
      na_picked at[STEP];
      float best[NA_ROWS];
      bool higher = false;
      NA_UNROLL for (int h = 0; h < NA_ROWS; h++) best[h] = top[h];
      NA_UNROLL for (int g = 0; g < STEP; g++) {
        const int j = i + g * DEEP;
        na_clear<1>(s + g);
        at[g] = na_pick<EIGHT>(walk, column, j);
        na_dot<LK, FK>(s[g], q, keys, at[g], me);
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
          const bool in = na_in_sight<EIGHT>(column, j, e);
          s[g].e[e] *= scale;
          if (BIAS && in)
            s[g].e[e] += bias[mine[e / 2].bin + na_entry_at<EIGHT>(bins, column, j, e)] * NA_LOG2E;
          if (!in) s[g].e[e] = NA_MASKED;
          best[e / 2] = na_fmax(best[e / 2], s[g].e[e]);
        }
      }
      NA_UNROLL for (int h = 0; h < NA_ROWS; h++) higher = higher || best[h] > top[h] + SLACK;
      if (na_any(higher))
        NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
          best[h] = na_row_max(best[h]);
          const float shrink = na_exp2(top[h] - best[h]);
          top[h] = best[h];
          total[h] *= shrink;
          NA_UNROLL for (int f = 0; f < FV; f++)
            NA_UNROLL for (int e = 0; e < 2; e++) sum[f].e[h * 2 + e] *= shrink;
        }
      NA_UNROLL for (int g = 0; g < STEP; g++) {
        na_frag<T> p;
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
          const float weight = na_exp2(s[g].e[e] - top[e / 2]);
          total[e / 2] += weight;
          p.e[e] = T(weight);
        }
        na_accumulate<LV, FV>(sum, p, values, at[g], me);
      }
    }
  }
}

NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  total[h] = na_row_sum(total[h]);
  if (!mine[h].stored) continue;
  const float norm = mine[h].live ? na_reciprocal(total[h]) : 0.0f;
  na_store<DV>(out + mine[h].row * DV, sum, h, me, norm);
  if (me.column == 0)
    lse[mine[h].row] =
        mine[h].live ? (top[h] + na_log2(total[h])) * NA_LN2 : na_float(NA_MINUS_INFINITY);
}
