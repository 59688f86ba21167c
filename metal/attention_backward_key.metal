// Gradients of key and value: keys stay, the queries that see them pass by. Which queries see a key
// is a closed form, so there is neither a map nor an atomic.
//
// template  as attention_forward; Q counts keys; PACKED (one array has all gradients, d_key: of each
//           token the rows of all query heads, which d_query brings, of keys and of values)
// inputs    query key value d_out marks d_query params lengths rpb
// outputs   d_key [B, *L, Hkv, D], d_value [B, *L, Hkv, DV]; PACKED d_key [B, *L, H + 2 Hkv, D]
// grid      items * Hkv threadgroups
//
// Keys and values with both gradients take many registers. Where rows are long the queries pass by
// twice, once for each gradient: their weights are computed twice, but nothing is spilled for it.
constexpr int FK = na_frags<D>(), FV = na_frags<DV>();
constexpr int PITCH = na_pitch<T, (D > DV ? D : DV)>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (2 * PITCH * int(sizeof(T))), SIZE = CAPACITY * PITCH;
constexpr int HELD = (FK + FV) * NA_HELD * NA_WIDE / 2 * (int(sizeof(T)) / 2 + 2);  // registers
constexpr int OTHERS = NA_PARTS > 1 && RANK > 2 ? 16 : 0;  // that parts and axes take
constexpr int ROUNDS = HELD + OTHERS > NA_MOST_HELD ? 2 : 1;
NA_SHARED na_tour tour;
NA_SLABS T slabs[NA_DYNAMIC(BUFFERS * 2 * SIZE)];
NA_SHARED float exchange[2 * NA_HALF];

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const int kv_heads = params[NA_KV_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, kv_heads), kv_head = group - item * kv_heads;
const int sharing = params[NA_SHARING];  // heads that use a kv_head
const na_lane me = na_lane_in_team<T>(thread_index);
int turn = 0;  // of the exchange
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
const na_tile tile = na_key_tile<RANK, PLAIN>(params, lengths, item, many);
const na_point corner = na_team_place<AXIS>(thread_index / NA_TEAM_THREADS, teams, few);
const int across = PACKED ? params[NA_HEADS] + 2 * kv_heads : kv_heads;  // rows of a token
const int before = PACKED ? params[NA_HEADS] : 0;                         // those of queries
const na_rows key_rows = na_rows_of<RANK, true>(params, tile, before + kv_head, across, NA_OWN);
const float scale = na_float(params[NA_SCALE]) * NA_LOG2E;
na_table bins = na_table_of<RANK, true>(params);
NA_EACH_AXIS(a) bins.pitch[a] *= tile.axis[a].rank_step;  // of a query t

na_mine mine[NA_ROWS];
na_frag<T> k[FK];
na_find_mine<RANK, true, Q1, Q2>(mine, params, tile, key_rows, corner, me);
na_load_rows<RANK, D>(k, key, key_strides, tile.batch, kv_head, mine, me);
const na_seen seen = na_seen_from<RANK, true>(tile, corner, few);
const na_box all = na_seen_from<RANK, true>(tile, na_size(0, 0, 0), many).any;
if (thread_index == 0) na_begin_tour<SHAPE>(tour, params, all, CAPACITY);
if (thread_index == threads - 1) {  // with the rows of the first head
  na_tile fine = tile;
  const na_source first = na_source_of<RANK, FINER>(params, kv_head * sharing, fine);
  tour.own = na_own_of<RANK, true>(tile, key_rows, kv_head);
  na_come_from<D, DV>(tour, all, query, na_lines_of<RANK, false>(query_strides, fine, first.head),
                      d_out, na_lines_of<RANK, false>(d_out_strides, fine, first.head),
                      na_rows_of<RANK, false>(params, fine, first.head, first.heads, NA_OUTPUTS),
                      FINER ? na_all_steps<RANK>(query_strides) | na_all_steps<RANK>(d_out_strides) : 0);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
na_keep_seen(tour, seen, thread_index);
const auto heads = na_heads_of<RANK, FINER>(params, sharing, query_strides, d_out_strides);
na_clear_slabs<D, DV>(slabs, BUFFERS * 2 * SIZE, thread_index, threads);

NA_UNROLL for (int round = 0; round < ROUNDS; round++) {
  const bool of_value = round == 0, of_key = round == ROUNDS - 1;
  if (round > 0) {  // after the last slab comes the first
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
      const int end = sharing * tour.number;
      const na_box first = tour.slab[end % 3], second = tour.slab[(end + 1) % 3];
      tour.slab[0] = first;
      tour.slab[1] = second;
    }
  }
  na_frag<T> v[FV];
  na_frag<float> acc_dk[FK], acc_dv[FV];
  na_clear<FK>(acc_dk);
  na_clear<FV>(acc_dv);
  if (of_key) na_load_rows<RANK, DV>(v, value, value_strides, tile.batch, kv_head, mine, me);
  for (int n = 0; n < sharing * tour.number; n++) {
    const TGP T* queries = na_next_slab<RANK, D, DV, PITCH, SIZE, BUFFERS>(
        slabs, query, d_out, marks, tour, n, heads, thread_index, threads);
    const TGP T* gradients = queries + na_second<SIZE>();
    const int ahead = na_quotient(n, tour.number);  // of the first head
    na_walk walk = na_walk_over<SHAPE>(na_seen_again(tour, seen, thread_index), tour.slab[n % 3]);
    na_keep_pace<SHAPE>(walk, tour, thread_index, threads);
    for (int beside = 0; beside < walk.to_width; beside += SHAPE::COLUMNS) {
      const na_column column = na_column_at<SHAPE>(walk, mine, beside, me);
      for (int i = 0; i < walk.to_depth; i += SHAPE::DEEP) {
        const na_picked at = na_pick<SHAPE>(walk, column, i);
        const TGP float* mark[NA_PER_ROW];
        NA_UNROLL for (int t = 0; t < NA_PER_ROW; t++)
          mark[t] = (const TGP float*)(queries + at.column[t] + na_marks<T, PITCH>());
        na_pairs<float> s = {}, dp;
        NA_UNROLL for (int e = 0; e < NA_PAIRS; e++)
          dp.e[e] = me.part == 0 ? mark[na_token_of(e)][2] : 0.0f;
        na_dot<FK, true>(s, k, queries + na_first<FK>(me), at, me);
        if (of_key) na_dot<FV>(dp, v, gradients + na_first<FV>(me), at, me);
        na_settle<1>(&s);
        if (of_key) na_settle<1>(&dp);
        na_add_parts(s, dp, exchange, turn, thread_index, me);
        if (!NA_SAME_DOTS)
          NA_UNROLL for (int e = 0; e < NA_PAIRS; e++)
            if (mark[na_token_of(e)][3] != 0.0f && na_in_sight<SHAPE>(walk, column, i, e)) {
              const uint again = na_again(tour);
              const na_found found = na_find_again<RANK, AXIS, Q0, Q1, Q2>(
                  tour.own, params + again, thread_index + again, me, na_row_of(e));
              s.e[e] = na_plain_dot<D>(key + na_line_again<RANK>(key_strides, tour.own, found, again),
                                       int(key_strides[again + RANK + 2]), queries + at.column[na_token_of(e)], 1);
            }
        if (BIAS)
          NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
            const int bin = mine[na_row_of(e)].bin - na_entry_at<SHAPE>(bins, column, i, e);
            const float more = na_biased(na_mask_of<SHAPE>(walk, column, i, e),
                                         rpb + (kv_head * sharing + ahead) * params[NA_BINS], bin);
            s.e[e] = na_multiply_add(s.e[e], scale, more);
          }
        else na_mask_logits<SHAPE>(s, scale, walk, column, i);
        na_pairs<float> ds;
        NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
          const TGP float* of = mark[na_token_of(e)];
          s.e[e] = na_exp2(s.e[e] + of[0] + of[1]);
          ds.e[e] = s.e[e] * dp.e[e];
        }
        if (!NA_SAME_DOTS) na_together();
        if (of_value) na_accumulate<FV>(acc_dv, s, gradients + na_first<FV>(me), at, me);
        if (of_key) na_accumulate<FK>(acc_dk, ds, queries + na_first<FK>(me), at, me);
      }
    }
  }
  if (of_key) na_settle<FK>(acc_dk);
  if (of_value) na_settle<FV>(acc_dv);
  const uint again = na_again(tour);
  na_found found[NA_ROWS];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    found[h] = na_found_of<RANK, AXIS, Q0, Q1, Q2>(mine[h], tour.own, params + again, thread_index + again, me, h);
  const int shared = PACKED ? params[again + NA_KV_HEADS] : 0;
  if (of_key) na_store_rows<D>(d_key, acc_dk, found, na_float(params[again + NA_SCALE]), me);
  if (of_value) na_store_rows<DV>(PACKED ? d_key : d_value, acc_dv, found, 1.0f, me, shared);
  if (PACKED && of_key) {  // the gradient of its queries comes along, zeros where there are none
    const int first = tour.own.head * sharing;
    na_found queries[NA_ROWS];
    NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
      queries[h] = na_query_of<RANK, PLAIN>(found[h], params + again);
    for (int head = first; head < first + sharing; head++) {
      na_frag<T> dq[FK];
      na_load_rows<RANK, D>(dq, d_query, d_query_strides, tour.own.batch, head, queries, me);
      na_frag<float> same[FK];
      NA_UNROLL for (int f = 0; f < FK; f++)
        NA_UNROLL for (int e = 0; e < NA_HELD * NA_WIDE; e++) same[f].e[e] = float(dq[f].e[e]);
      na_store_rows<D>(d_key, same, found, 1.0f, me, head - params[NA_HEADS] - tour.own.head);
    }
  }
}
