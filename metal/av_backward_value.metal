// Weighted sum of what sees every key: d_value = scale * attn^T . d_out over the queries that see it.
// Also the gradient of the key from that of the logits (d_out is the query then).
//
// template  T; RANK; PLAIN; DV; SLAB; Q0 Q1 Q2, AXIS, HIGH as attention_backward_key
// inputs    attn [B, *out, H, prod K], d_out [B, *out, H, DV], params, lengths, rpb (unused)
// outputs   d_value [B, *L, Hkv, DV]
// grid      items * Hkv threadgroups
constexpr int FV = na_frags<DV>(), PITCH = na_pitch<T, DV>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (PITCH * int(sizeof(T))), SIZE = CAPACITY * PITCH;
NA_SHARED na_tour tour;
NA_SLABS T slabs[NA_DYNAMIC(BUFFERS * SIZE)];

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const int kv_heads = params[NA_KV_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, kv_heads), kv_head = group - item * kv_heads;
const int sharing = params[NA_SHARING];  // heads that use a kv_head
const na_lane me = na_lane_in_team<T>(thread_index);
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_tile tile = na_key_tile<RANK, PLAIN>(params, lengths, item, many);
const na_point corner = na_team_place<AXIS>(thread_index / NA_TEAM_THREADS, teams, few);
const na_rows key_rows = na_rows_of<RANK, true>(params, tile, kv_head, kv_heads, NA_OWN);
const na_table slots = na_table_of<RANK, false>(params);
const int volume = na_volume(params);

na_mine mine[NA_ROWS];
na_frag<float> sum[FV];
na_clear<FV>(sum);
na_find_mine<RANK, true, Q1, Q2>(mine, params, tile, key_rows, corner, me);
const na_seen seen = na_seen_from<RANK, true>(tile, corner, few);
if (thread_index == 0) {  // with the rows of the first head
  const int first = kv_head * sharing;
  const na_lines lines = na_lines_of<RANK, false>(d_out_strides, tile, first);
  const na_box all = na_seen_from<RANK, true>(tile, na_size(0, 0, 0), many).any;
  na_begin_tour<SHAPE>(tour, params, all, CAPACITY);
  na_come_from<DV, 0>(tour, all, d_out, lines, d_out, lines,
                      na_rows_of<RANK, false>(params, tile, first, params[NA_HEADS], NA_OUTPUTS));
}
threadgroup_barrier(mem_flags::mem_threadgroup);
na_clear_slabs<DV, 0>(slabs, BUFFERS * SIZE, thread_index, threads);

const DEV float* none = 0;
const auto heads = na_heads_of<RANK, false>(params, sharing, d_out_strides, d_out_strides);
for (int n = 0; n < sharing * tour.number; n++) {
  const TGP T* gradients = na_next_slab<RANK, DV, 0, PITCH, SIZE, BUFFERS>(
      slabs, d_out, d_out, none, tour, n, heads, thread_index, threads);
  const na_rows rows = na_rows_again(tour, na_quotient(n, tour.number));
  const na_walk walk = na_walk_over<SHAPE>(seen, tour.slab[n % 3]);
  for (int across = 0; across < walk.to_width; across += SHAPE::COLUMNS) {
    const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
    for (int i = 0; i < walk.to_depth; i += SHAPE::DEEP) {
      na_pairs<float> p = {};
      NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
        if (!na_in_sight<SHAPE>(walk, column, i, e)) continue;
        const na_point token = na_token<SHAPE>(column, i, e);
        int slot = 0;
        NA_EACH_AXIS(a) {
          const int first = na_window(tile.axis[a], token.at[a]).first;
          slot += (mine[na_row_of(e)].rank.at[a] - first) * slots.pitch[a];
        }
        p.e[e] = float(attn[na_row<RANK>(rows, token) * volume + slot]);
      }
      na_together();
      const na_picked at = na_pick<SHAPE>(walk, column, i);
      na_accumulate<FV>(sum, p, gradients + na_first<FV>(me), at, me);
    }
  }
}

na_store_rows<DV>(d_value, sum, mine, na_float(params[NA_SCALE]), me);
