// Weighted sum of what sees every key: d_value = scale * attn^T . d_out over the queries that see it.
// Also the gradient of the key from that of the logits (d_out is the query then).
//
// template  T; RANK; PLAIN; DV; SLAB; Q0 Q1 Q2, AXIS, HIGH as attention_backward_key
// inputs    attn [B, *out, H, prod K], d_out [B, *out, H, DV], params, lengths, rpb (unused)
// outputs   d_value [B, *L, Hkv, DV]
// grid      items * Hkv threadgroups
constexpr int FV = (DV + 7) / 8, PITCH = na_pitch<T, DV>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (PITCH * int(sizeof(T)));
NA_SHARED T gradients[CAPACITY * PITCH];
NA_SHARED na_tour tour;

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const int kv_heads = params[NA_KV_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, kv_heads), kv_head = group - item * kv_heads;
const int sharing = params[NA_SHARING];  // heads that use a kv_head
const na_lane me = na_lane_of<T>(thread_index % NA_TEAM);
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_tile tile = na_key_tile<RANK, PLAIN>(params, lengths, item, many);
const na_point corner = na_team_place<AXIS>(thread_index / NA_TEAM, teams, few);
const na_rows key_rows = na_key_rows<RANK>(params, tile, kv_head, NA_OWN);
const na_table slots = na_slots<RANK>(params);
const int volume = na_volume(params);

na_key mine[NA_ROWS];
na_frag<float> sum[FV];
na_clear<FV>(sum);
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  const na_point place = na_place<Q1, Q2>(h * 8 + me.row);
  mine[h] = na_key_at<RANK>(params, tile, key_rows, corner, place);
}
const na_box wanted = na_queries_seeing<RANK>(tile, corner, few);
if (thread_index == 0)  // with the rows of the first head
  tour = na_tour_of<SHAPE>(na_queries_seeing<RANK>(tile, na_size(0, 0, 0), many),
                           na_query_rows<RANK>(params, tile, 0, NA_OUTPUTS), CAPACITY);
threadgroup_barrier(mem_flags::mem_threadgroup);
na_clear_tails<DV, PITCH>(gradients, CAPACITY, thread_index, threads);

for (int head = kv_head * sharing; head < (kv_head + 1) * sharing; head++)
NA_EACH_SLAB(tour) {
  const na_box slab = na_slab<RANK>(tour.box, tour.reach, z, y, x);
  const na_rows rows = na_of_head(tour.rows, head);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  na_stage<RANK, DV, PITCH>(gradients, d_out, rows, slab, thread_index + tour.none, threads);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const na_walk walk = na_walk_over<SHAPE>(wanted, slab);
  NA_EACH_COLUMN(walk) {
    const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
    for (int i = 0; i < walk.depth; i += SHAPE::DEEP) {
      na_pairs<T> p;
      NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
        const na_point token = na_token<SHAPE>(column, i, e);
        p.e[e] = T(0.0f);
        if (!na_in_sight<SHAPE>(column, i, e)) continue;
        int slot = 0;
        NA_EACH_AXIS(a) {
          const int first = na_window(tile.axis[a], token.at[a]).first;
          slot += (mine[e / 2].rank[a] - first) * slots.pitch[a];
        }
        p.e[e] = attn[na_row<RANK>(rows, token) * volume + slot];
      }
      na_together();
      const na_picked at = na_pick<SHAPE>(walk, column, i);
      na_accumulate<FV>(sum, p, gradients, at, me);
    }
  }
}

na_store_rows<DV>(d_value, sum, mine, na_float(params[NA_SCALE]), me);
