// Gradient of the query, what the second pass needs to know of each (marks), and every team's share
// of the gradient of rpb. Tiled like attention_forward. The marks are minus the two stats, minus
// delta = rowsum(d_out * out) - d_lse, and whether the logits are large (rows.h).
//
// template  as attention_forward, and BINS: numbers of threadgroup memory in which all
//           teams sum per relative position (0: in d_rpb itself, where they would not fit)
// inputs    query key value out d_out stats d_lse params lengths rpb
// outputs   d_query [B, *out, H, D], marks [B, *out, H, 4] float,
//           d_rpb [H, slices * teams, 2K-1 per axis] float, to be summed over its second axis
// grid      slices * H threadgroups; with BIAS each works through several items
constexpr int FK = na_frags<D>(), FV = na_frags<DV>();
constexpr int PITCH = na_pitch<T, (D > DV ? D : DV)>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (2 * PITCH * int(sizeof(T))), SIZE = CAPACITY * PITCH;
NA_SHARED na_tour tour;
NA_SLABS T slabs[NA_DYNAMIC(BUFFERS * 2 * SIZE)];
NA_SHARED float exchange[2 * NA_HALF];
NA_SHARED float close_bins[BINS > 0 ? BINS : 1];
static_assert(!BIAS || NA_TEAM == 32, "sums per relative position need teams of a simdgroup");

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const uint team = thread_index / NA_TEAM_THREADS;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int slice = na_quotient(group, heads), head = group - slice * heads;
const int slices = na_quotient(int(threadgroups_per_grid.x), heads), count = params[NA_BINS];
const na_lane me = na_lane_in_team<T>(thread_index);
int turn = 0;  // of the exchange
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_point corner = na_team_place<AXIS>(team, teams, few);
const int kv_head = na_quotient(head, params[NA_SHARING]);
const na_table bins = na_table_of<RANK, true>(params);
const DEV float* bias = rpb + head * count;
TGP float* close = close_bins + (BINS > 0 ? team * count : 0);
const long shares = long(head * slices + slice) * (threads / NA_TEAM_THREADS);  // before this threadgroup's
DEV float* share_of_rpb = d_rpb + (shares + team) * count;
const float scale = na_float(params[NA_SCALE]) * NA_LOG2E;

na_clear_slabs<D, DV>(slabs, BUFFERS * 2 * SIZE, thread_index, threads);
if (BIAS && me.part == 0) na_clear_bins<BINS>(close, share_of_rpb, count, thread_index % 32);

const int items = params[NA_ITEMS];
for (int item = slice; item < items; item = BIAS ? item + slices : items) {  // one, without
  na_tile tile = na_query_tile<RANK, PLAIN>(params, lengths, item, many);
  const na_source source = na_source_of<RANK, FINER>(params, head, tile);
  const na_rows rows = na_rows_of<RANK, false>(params, tile, source.head, source.heads, source.extent);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const na_box all = na_seen_from<RANK, false>(tile, na_size(0, 0, 0), many).any;
  if (thread_index == 0) na_begin_tour<SHAPE>(tour, params, all, CAPACITY);
  if (thread_index == threads - 1) {
    tour.own = na_own_of<RANK, false>(tile, rows, source.head);
    na_come_from<D, DV>(tour, all, key, na_lines_of<RANK, true>(key_strides, tile, kv_head),
                        value, na_lines_of<RANK, true>(value_strides, tile, kv_head));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const na_seen seen = na_seen_from<RANK, false>(tile, corner, few);
  na_keep_seen(tour, seen, thread_index);
  na_mine mine[NA_ROWS];
  float delta[NA_ROWS];
  na_stats softmax[NA_ROWS];
  bool large[NA_ROWS];
  na_frag<T> q[FK], o[FV], g_out[FV];
  na_frag<float> acc_dq[FK];
  na_clear<FK>(acc_dq);
  na_find_mine<RANK, false, Q1, Q2>(mine, params, tile, rows, corner, me);
  na_load_rows<RANK, D>(q, query, query_strides, tile.batch, source.head, mine, me);
  na_load_rows<RANK, DV>(o, out, out_strides, tile.batch, source.head, mine, me);
  na_load_rows<RANK, DV>(g_out, d_out, d_out_strides, tile.batch, source.head, mine, me);
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    delta[h] = na_row_dot<FV>(g_out, o, h);  // by all lanes, live or not
  na_add_parts<NA_ROWS>(delta, exchange, turn, thread_index, me);
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    const long row = mine[h].row;
    delta[h] = mine[h].live ? delta[h] - (d_lse != nullptr ? d_lse[row] : 0.0f) : 0.0f;
    softmax[h] = na_stats_of(stats, row, mine[h].live);
    large[h] = na_is_large(softmax[h]);
    if (large[h])
      softmax[h] = na_recount<RANK, BIAS, D>(
          mine[h], query + na_line_at<RANK>(query_strides, tile.batch, mine[h].token, source.head),
          int(query_strides[RANK + 2]), key, na_lines_again(tour, 0), bins, bias, scale);
    if (mine[h].stored && me.column + me.part == 0) {
      const na_pack<float, 4> mark = {
          {-softmax[h].top, -softmax[h].log_sum, -delta[h], large[h] ? 1.0f : 0.0f}};
      *(DEV na_pack<float, 4>*)(marks + row * 4) = mark;
    }
  }
  simdgroup_barrier(mem_flags::mem_none);  // as in na_keep_seen

  for (int n = 0; n < tour.number; n++) {
    const TGP T* keys = na_next_slab<RANK, D, DV, PITCH, SIZE, BUFFERS>(
        slabs, key, value, tour, n, thread_index, threads);
    const TGP T* values = keys + na_second<SIZE>();
    na_walk walk = na_walk_over<SHAPE>(na_seen_again(tour, seen, thread_index), tour.slab[n % 3]);
    na_keep_pace<SHAPE>(walk, tour, thread_index, threads);
    for (int across = 0; across < walk.to_width; across += SHAPE::COLUMNS) {
      const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
      for (int i = 0; i < walk.to_depth; i += SHAPE::DEEP) {
        const na_picked at = na_pick<SHAPE>(walk, column, i);
        na_pairs<float> s = {}, dp;
        NA_UNROLL for (int e = 0; e < NA_PAIRS; e++)
          dp.e[e] = me.part == 0 ? -delta[na_row_of(e)] : 0.0f;
        na_dot<FK>(s, q, keys + na_first<FK>(me), at, me);
        na_dot<FV>(dp, g_out, values + na_first<FV>(me), at, me);
        na_settle<1>(&s);
        na_settle<1>(&dp);
        na_add_parts(s, dp, exchange, turn, thread_index, me);
        if (!NA_SAME_DOTS)
          NA_UNROLL for (int e = 0; e < NA_PAIRS; e++)
            if (large[na_row_of(e)] && na_in_sight<SHAPE>(walk, column, i, e)) {
              const uint again = na_again(tour);
              const na_found found = na_find_again<RANK, AXIS, Q0, Q1, Q2>(
                  tour.own, params + again, thread_index + again, me, na_row_of(e));
              s.e[e] = na_plain_dot<D>(query + na_line_again<RANK>(query_strides, tour.own, found, again),
                                       int(query_strides[again + RANK + 2]), keys + at.column[na_token_of(e)], 1);
            }
        int bin[NA_PAIRS];
        if (BIAS)
          NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
            const float mask = na_mask_of<SHAPE>(walk, column, i, e);
            const int place = mine[na_row_of(e)].bin + na_entry_at<SHAPE>(bins, column, i, e);
            bin[e] = mask == 0.0f ? place : -1;
            s.e[e] = na_multiply_add(s.e[e], scale, na_biased(mask, bias, place));
          }
        else na_mask_logits<SHAPE>(s, scale, walk, column, i);
        na_pairs<float> ds;
        NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
          const na_stats of = softmax[na_row_of(e)];
          ds.e[e] = na_exp2(s.e[e] - of.top - of.log_sum) * dp.e[e];
        }
        if (!NA_SAME_DOTS) na_together();
        na_accumulate<FK>(acc_dq, ds, keys + na_first<FK>(me), at, me);
        if (BIAS && me.part == 0) na_add_to_bins<BINS>(close, share_of_rpb, me, bin, ds.e);
      }
    }
  }
  na_settle<FK>(acc_dq);
  const uint again = na_again(tour);
  const float factor = na_float(params[again + NA_SCALE]);  // read by all lanes
  na_found found[NA_ROWS];
  float factors[NA_ROWS];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    found[h] = na_found_of<RANK, AXIS, Q0, Q1, Q2>(mine[h], tour.own, params + again, thread_index + again, me, h);
    factors[h] = found[h].live ? factor : 0.0f;
  }
  na_store_rows<D>(d_query, acc_dq, found, factors, me);
}
if (BIAS && me.part == 0) na_write_bins<BINS>(close, share_of_rpb, count, thread_index % 32);
