// Logits of every query and slot: scale * query . key + rpb; also the gradient of attention weights,
// d_out . value.
//
// template  T; RANK; PLAIN; D; BIAS; SLAB; Q0 Q1 Q2, AXIS, HIGH as attention_forward
// inputs    query [B, *out, H, D], key [B, *L, Hkv, D], params, lengths, rpb
// outputs   logits [B, *out, H, prod K]; slots without a key hold params[NA_FILL]
// grid      items * H threadgroups
constexpr int FK = na_frags<D>(), PITCH = na_pitch<T, D>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (PITCH * int(sizeof(T))), SIZE = CAPACITY * PITCH;
NA_SHARED na_tour tour;
NA_SLABS T slabs[NA_DYNAMIC(BUFFERS * SIZE)];
NA_SHARED float exchange[2 * NA_HALF];

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, heads), head = group - item * heads;
const na_lane me = na_lane_in_team<T>(thread_index);
int turn = 0;  // of the exchange
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_tile tile = na_query_tile<RANK, PLAIN>(params, lengths, item, many);
const na_point corner = na_team_place<AXIS>(thread_index / NA_TEAM_THREADS, teams, few);
const na_rows rows = na_rows_of<RANK, false>(params, tile, head, params[NA_HEADS], NA_OWN);
const int kv_head = na_quotient(head, params[NA_SHARING]);
const na_table bins = na_table_of<RANK, true>(params), slots = na_table_of<RANK, false>(params);
const DEV float* bias = rpb + head * params[NA_BINS];
const int volume = na_volume(params);
const float scale = na_float(params[NA_SCALE]);

na_mine mine[NA_ROWS];
na_frag<T> q[FK];
na_find_mine<RANK, false, Q1, Q2>(mine, params, tile, rows, corner, me);
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  if (me.part == 0 && mine[h].stored && !na_whole<RANK>(mine[h], volume))
    for (int i = me.column / NA_BESIDE; i < volume; i += 4)
      logits[mine[h].row * volume + i] = T(na_float(params[NA_FILL]));
}
na_load_rows<RANK, D>(q, query, query_strides, tile.batch, head, mine, me);
simdgroup_barrier(mem_flags::mem_device);

const na_seen seen = na_seen_from<RANK, false>(tile, corner, few);
if (thread_index == 0) {
  const na_lines lines = na_lines_of<RANK, true>(key_strides, tile, kv_head);
  const na_box all = na_seen_from<RANK, false>(tile, na_size(0, 0, 0), many).any;
  na_begin_tour<SHAPE>(tour, params, all, CAPACITY);
  na_come_from<D, 0>(tour, all, key, lines, key, lines);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
na_clear_slabs<D, 0>(slabs, BUFFERS * SIZE, thread_index, threads);
for (int n = 0; n < tour.number; n++) {
  const TGP T* keys = na_next_slab<RANK, D, 0, PITCH, SIZE, BUFFERS>(
      slabs, key, key, tour, n, thread_index, threads);
  na_walk walk = na_walk_over<SHAPE>(seen, tour.slab[n % 3]);
  na_keep_pace<SHAPE>(walk, tour, thread_index, threads);
  for (int across = 0; across < walk.to_width; across += SHAPE::COLUMNS) {
    const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
    for (int i = 0; i < walk.to_depth; i += SHAPE::DEEP) {
      na_pairs<float> s = {};
      const na_picked at = na_pick<SHAPE>(walk, column, i);
      na_dot<FK>(s, q, keys + na_first<FK>(me), at, me);
      na_add_parts<NA_PAIRS>(s.e, exchange, turn, thread_index, me);
      NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
        const na_mine one = mine[na_row_of(e)];
        if (me.part != 0 || !na_in_sight<SHAPE>(walk, column, i, e)) continue;
        float logit = s.e[e] * scale;
        if (BIAS) logit += bias[one.bin + na_entry_at<SHAPE>(bins, column, i, e)];
        const int slot = one.slot + na_entry_at<SHAPE>(slots, column, i, e);
        logits[one.row * volume + slot] = T(logit);
      }
      na_together();
    }
  }
}
