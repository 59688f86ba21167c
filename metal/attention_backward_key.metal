// Gradients of key and value: keys stay, the queries that see them pass by. Which queries see a key
// is a closed form, so there is neither a map nor an atomic.
//
// template  as attention_forward; Q counts keys
// inputs    query key value d_out marks params lengths rpb
// outputs   d_key [B, *L, Hkv, D], d_value [B, *L, Hkv, DV]
// grid      items * Hkv threadgroups
//
// Keys and values with both gradients take many registers. Where rows are long the queries pass by
// twice, once for each gradient: their weights are computed twice, but nothing is spilled for it.
constexpr int FK = (D + 7) / 8, FV = (DV + 7) / 8;
constexpr int PITCH = na_pitch<T, (D > DV ? D : DV)>();  // of both slabs
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (2 * PITCH * int(sizeof(T)));
constexpr int HELD = (FK + FV) * NA_ROWS * (int(sizeof(T)) / 2 + 2);  // registers
constexpr int ROUNDS = HELD > NA_MOST_HELD + (RANK == 1 ? 16 : 0) ? 2 : 1;
NA_SHARED T queries[CAPACITY * PITCH];
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
const float factor = na_float(params[NA_SCALE]), scale = factor * NA_LOG2E;
na_table bins = na_bins<RANK>(params);
NA_EACH_AXIS(a) bins.pitch[a] *= tile.axis[a].rank_step;  // of a query t

na_key mine[NA_ROWS];
na_frag<T> k[FK];
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  const na_point place = na_place<Q1, Q2>(h * 8 + me.row);
  mine[h] = na_key_at<RANK>(params, tile, key_rows, corner, place);
}
na_load_rows<D>(k, key, mine, me);
const na_box wanted = na_queries_seeing<RANK>(tile, corner, few);
if (thread_index == 0)  // with the rows of the first head
  tour = na_tour_of<SHAPE>(na_queries_seeing<RANK>(tile, na_size(0, 0, 0), many),
                           na_query_rows<RANK>(params, tile, 0, NA_OUTPUTS), CAPACITY);
threadgroup_barrier(mem_flags::mem_threadgroup);
na_clear_tails<D, PITCH>(queries, CAPACITY, thread_index, threads);
na_clear_tails<DV, PITCH>(gradients, CAPACITY, thread_index, threads);

NA_UNROLL for (int round = 0; round < ROUNDS; round++) {
  const bool of_value = round == 0, of_key = round == ROUNDS - 1;
  na_frag<T> v[FV];
  na_frag<float> dk[FK], dv[FV];
  na_clear<FK>(dk);
  na_clear<FV>(dv);
  if (of_key) na_load_rows<DV>(v, value, mine, me);
  for (int head = kv_head * sharing; head < (kv_head + 1) * sharing; head++)
  NA_EACH_SLAB(tour) {
    const na_box slab = na_slab<RANK>(tour.box, tour.reach, z, y, x);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    na_stage<RANK, D, DV, PITCH>(queries, query, gradients, d_out, marks,
                                 na_of_head(tour.rows, head), slab, thread_index + tour.none,
                                 threads);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const na_walk walk = na_walk_over<SHAPE>(wanted, slab);
    NA_EACH_COLUMN(walk) {
      const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
      for (int i = 0; i < walk.depth; i += SHAPE::DEEP) {
        const na_picked at = na_pick<SHAPE>(walk, column, i);
        na_pairs<float> s, dp;
        na_pairs<na_weight<T>> p, ds;
        const TGP float* mark[2];
        NA_UNROLL for (int e = 0; e < 2; e++)
          mark[e] = (const TGP float*)(queries + at.column[e] + FK * 8);
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
          s.e[e] = 0.0f;
          dp.e[e] = mark[e % 2][2];
        }
        na_dot<FK, true>(s, k, queries, at, me);
        if (of_key) na_dot<FV>(dp, v, gradients, at, me);
        NA_UNROLL for (int e = 0; e < 2 * NA_ROWS; e++) {
          float more = na_mask<SHAPE>(column, i, e, column.hidden[e]);
          const TGP float* of = mark[e % 2];
          if (!NA_SAME_DOTS && of[3] != 0.0f && more == 0.0f) {
            const na_rows rows = na_of_head(na_rows_again(tour), head);
            s.e[e] = na_plain_dot<D>(query + na_row<RANK>(rows, na_token<SHAPE>(column, i, e)) * D,
                                     key + mine[e / 2].row * D);
          }
          if (BIAS)
            more = na_biased(more, rpb + head * params[NA_BINS],
                             mine[e / 2].bin - na_entry_at<SHAPE>(bins, column, i, e));
          const float logit = na_multiply_add(s.e[e], scale, more);
          const float weight = na_exp2(logit + of[0] + of[1]);
          p.e[e] = na_weight<T>(weight);
          ds.e[e] = na_weight<T>(weight * dp.e[e]);
        }
        if (!NA_SAME_DOTS) na_together();
        if (of_value) na_accumulate<FV>(dv, p, gradients, at, me);
        if (of_key) na_accumulate<FK>(dk, ds, queries, at, me);
      }
    }
  }

  if (of_key) na_store_rows<D>(d_key, dk, mine, factor, me);
  if (of_value) na_store_rows<DV>(d_value, dv, mine, 1.0f, me);
}
