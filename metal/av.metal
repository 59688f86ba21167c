// Weighted sum of what every query sees: out = scale * attn . value over its slots. Also the
// gradient of the query from that of the logits (value is the key then) and, with SUMS, of rpb.
//
// template  T; RANK; PLAIN; DV; SUMS; BINS; SLAB; Q0 Q1 Q2, AXIS, HIGH as attention_backward_query
// inputs    attn [B, *out, H, prod K], value [B, *L, Hkv, DV], params, lengths, rpb (unused)
// outputs   out [B, *out, H, DV], d_rpb [H, slices * teams, 2K-1 per axis] float
// grid      slices * H threadgroups; with SUMS each works through several items
constexpr int FV = na_frags<DV>(), PITCH = na_pitch<T, DV>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (PITCH * int(sizeof(T))), SIZE = CAPACITY * PITCH;
NA_SHARED na_tour tour;
NA_SLABS T slabs[NA_DYNAMIC(BUFFERS * SIZE)];
NA_SHARED float close_bins[BINS > 0 ? BINS : 1];

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const uint team = thread_index / NA_TEAM_THREADS;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int slice = na_quotient(group, heads), head = group - slice * heads;
const int slices = na_quotient(int(threadgroups_per_grid.x), heads), count = params[NA_BINS];
const na_lane me = na_lane_in_team<T>(thread_index);
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_point corner = na_team_place<AXIS>(team, teams, few);
const int kv_head = na_quotient(head, params[NA_SHARING]);
const na_table bins = na_table_of<RANK, true>(params), slots = na_table_of<RANK, false>(params);
const int volume = na_volume(params);
TGP float* close = close_bins + (BINS > 0 ? team * count : 0);
const long shares = long(head * slices + slice) * (threads / NA_TEAM_THREADS);  // before this threadgroup's
DEV float* share_of_rpb = d_rpb + (shares + team) * count;

na_clear_slabs<DV, 0>(slabs, BUFFERS * SIZE, thread_index, threads);
if (SUMS && me.part == 0) na_clear_bins<BINS>(close, share_of_rpb, count, thread_index % 32);

const int items = params[NA_ITEMS];
for (int item = slice; item < items; item = SUMS ? item + slices : items) {  // one, without
  const na_tile tile = na_query_tile<RANK, PLAIN>(params, lengths, item, many);
  const na_rows rows = na_rows_of<RANK, false>(params, tile, head, params[NA_HEADS], NA_OWN);
  na_mine mine[NA_ROWS];
  na_frag<float> sum[FV];
  na_clear<FV>(sum);
  na_find_mine<RANK, false, Q1, Q2>(mine, params, tile, rows, corner, me);

  const na_seen seen = na_seen_from<RANK, false>(tile, corner, few);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index == 0) {
    const na_lines lines = na_lines_of<RANK, true>(value_strides, tile, kv_head);
    const na_box all = na_seen_from<RANK, false>(tile, na_size(0, 0, 0), many).any;
    na_begin_tour<SHAPE>(tour, params, all, CAPACITY);
    na_come_from<DV, 0>(tour, all, value, lines, value, lines);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int n = 0; n < tour.number; n++) {
    const TGP T* values = na_next_slab<RANK, DV, 0, PITCH, SIZE, BUFFERS>(
        slabs, value, value, tour, n, thread_index, threads);
    const na_walk walk = na_walk_over<SHAPE>(seen, tour.slab[n % 3]);
    for (int across = 0; across < walk.to_width; across += SHAPE::COLUMNS) {
      const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
      for (int i = 0; i < walk.to_depth; i += SHAPE::DEEP) {
        na_pairs<float> p;
        int bin[NA_PAIRS];
        NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
          const na_mine one = mine[na_row_of(e)];
          const int slot = one.slot + na_entry_at<SHAPE>(slots, column, i, e);
          const bool in = na_in_sight<SHAPE>(walk, column, i, e);
          p.e[e] = in ? float(attn[one.row * volume + slot]) : 0.0f;
          bin[e] = SUMS && in ? one.bin + na_entry_at<SHAPE>(bins, column, i, e) : -1;
        }
        na_together();
        const na_picked at = na_pick<SHAPE>(walk, column, i);
        na_accumulate<FV>(sum, p, values + na_first<FV>(me), at, me);
        if (SUMS && me.part == 0) na_add_to_bins<BINS>(close, share_of_rpb, me, bin, p.e);
      }
    }
  }
  na_store_rows<DV>(out, sum, mine, na_float(params[NA_SCALE]), me);
}
if (SUMS && me.part == 0) na_write_bins<BINS>(close, share_of_rpb, count, thread_index % 32);
