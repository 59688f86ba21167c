// Neighborhood attention: out = softmax(scale * query . key + rpb) value, the log-sum-exp, and for the
// backward passes its two parts: a number near the largest logit, and log2 of the sum from there.
//
// template  T; RANK; PLAIN (neither dilation, stride, window_stride, causal axis nor lengths);
//           D, DV (head dims of query/key and of value); BIAS; SLAB (bytes);
//           Q0 Q1 Q2 (the queries of a team), AXIS (of columns),
//           HIGH (rows along it in which the keys of a fragment lie)
// inputs    query [B, *out, H, D], key [B, *L, Hkv, D], value [B, *L, Hkv, DV], params, lengths,
//           rpb [H, 2K-1 per axis] float
// outputs   out [B, *out, H, DV], lse [B, *out, H] float, stats [B, *out, H, 2] float
// grid      items * H threadgroups
constexpr int FK = (D + 7) / 8, FV = (DV + 7) / 8;  // fragments of a row
constexpr int PITCH = na_pitch<T, (D > DV ? D : DV)>();  // of both slabs
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (2 * PITCH * int(sizeof(T)));
constexpr int DEEP = SHAPE::DEEP;
constexpr int STEP = NA_ROWS;  // fragments between two looks at the maximum
constexpr float SLACK = 8.0f;  // weights may reach 2^8 before all are rescaled
NA_SHARED T keys[CAPACITY * PITCH];
NA_SHARED T values[CAPACITY * PITCH];
NA_SHARED na_tour tour;

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, heads), head = group - item * heads;
const na_lane me = na_lane_of<T>(thread_index % NA_TEAM);
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_tile tile = na_query_tile<RANK, PLAIN>(params, lengths, item, many);
const na_point corner = na_team_place<AXIS>(thread_index / NA_TEAM, teams, few);
const na_rows rows = na_query_rows<RANK>(params, tile, head, NA_OWN);
const int kv_head = na_quotient(head, params[NA_SHARING]);
const na_table bins = na_bins<RANK>(params);
const DEV float* bias = rpb + head * params[NA_BINS];
const float scale = na_float(params[NA_SCALE]) * NA_LOG2E;

na_query mine[NA_ROWS];
float top[NA_ROWS], total[NA_ROWS];  // of my queries: a logit near the largest, and sum from there
float limit[NA_ROWS];                // the largest logit that is near enough; none before the first
na_frag<T> q[FK];
na_frag<float> sum[FV];
na_clear<FV>(sum);
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  const na_point place = na_place<Q1, Q2>(h * 8 + me.row);
  mine[h] = na_query_at<RANK>(params, tile, rows, corner, place);
  top[h] = total[h] = 0.0f;
  limit[h] = NA_LOWEST;
}
na_load_rows<D>(q, query, mine, me);

const na_box wanted = na_keys_seen<RANK>(tile, corner, few);
if (thread_index == 0)
  tour = na_tour_of<SHAPE>(na_keys_seen<RANK>(tile, na_size(0, 0, 0), many),
                           na_key_rows<RANK>(params, tile, kv_head, NA_LENGTH), CAPACITY);
threadgroup_barrier(mem_flags::mem_threadgroup);
na_clear_tails<D, PITCH>(keys, CAPACITY, thread_index, threads);
na_clear_tails<DV, PITCH>(values, CAPACITY, thread_index, threads);

NA_EACH_SLAB(tour) {
  const na_box slab = na_slab<RANK>(tour.box, tour.reach, z, y, x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, D, DV, PITCH>(keys, key, values, value, tour.rows, slab,
                               thread_index + tour.none, threads);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_walk walk = na_walk_over<SHAPE>(wanted, slab);
  NA_EACH_COLUMN(walk) {
    const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
    for (int i = 0; i < walk.depth; i += DEEP * STEP) {
      na_pairs<float> s[STEP];  // logits
      na_picked at[STEP];
      bool higher = false;
      NA_UNROLL for (int g = 0; g < STEP; g++) {
        const int j = i + g * DEEP;
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) s[g].e[e] = 0.0f;
        at[g] = na_pick<SHAPE, STEP>(walk, column, j);
        na_dot<FK>(s[g], q, keys, at[g], me);
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
          float more = na_mask<SHAPE>(column, j, e, column.hidden[e]);
          if (BIAS)
            more = na_biased(more, bias, mine[e / 2].bin + na_entry_at<SHAPE>(bins, column, j, e));
          s[g].e[e] = na_multiply_add(s[g].e[e], scale, more);
        }
        NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
          higher = higher || na_fmax(s[g].e[2 * h], s[g].e[2 * h + 1]) > limit[h];
      }
      if (na_team_any(higher)) {  // the largest logit becomes the reference, if it is too far above
        float shrink[NA_ROWS];
        NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
          float best = NA_MASKED;
          NA_UNROLL for (int g = 0; g < STEP; g++)
            best = na_fmax(best, na_fmax(s[g].e[2 * h], s[g].e[2 * h + 1]));
          best = na_row_max(best);
          shrink[h] = 1.0f;
          if (best > limit[h]) {
            shrink[h] = na_exp2(na_fmin(top[h] - best, 0.0f));
            top[h] = best;
            limit[h] = best + SLACK;
          }
          total[h] *= shrink[h];
        }
        na_scale_rows<FV>(sum, shrink);
      }
      NA_UNROLL for (int g = 0; g < STEP; g++) {
        na_pairs<na_weight<T>> p;
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
          const float weight = na_exp2(s[g].e[e] - top[e / 2]);
          total[e / 2] += weight;
          p.e[e] = na_weight<T>(weight);
        }
        na_accumulate<FV>(sum, p, values, at[g], me);
      }
    }
  }
}

float norm[NA_ROWS];
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  total[h] = na_row_sum(total[h]);
  norm[h] = mine[h].live ? na_reciprocal(total[h]) : 0.0f;
}
na_store_rows<DV>(out, sum, mine, norm, me);
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  if (!mine[h].stored || me.column != 0) continue;
  const float log_total = mine[h].live ? na_log2(total[h]) : 0.0f;
  lse[mine[h].row] = mine[h].live ? (top[h] + log_total) * NA_LN2 : na_float(NA_MINUS_INFINITY);
  stats[mine[h].row * 2] = mine[h].live ? top[h] : 0.0f;
  stats[mine[h].row * 2 + 1] = log_total;
}
