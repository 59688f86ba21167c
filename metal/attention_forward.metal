// Neighborhood attention: out = softmax(scale * query . key + rpb) value, the log-sum-exp, and for the
// backward passes its two parts: a number near the largest logit, and log2 of the sum from there.
//
// Start here. docs/kernels.md has the design and a drawing, docs/glossary.md the words. Before this
// body come, in this order: dialect_*.h (words of the language), fragment.h (what lanes share out),
// core_*.h and simdgroup.h (products), arithmetic.h, window.h, tile.h (who sees whom), arrays.h (where
// rows lie), team.h (each of its queries), slab.h and stage.h (keys come to threadgroup memory), walk.h
// (fragments of keys), rows.h (queries come and go), softmax.h.
//
// template  T; RANK; PLAIN (neither dilation, stride, window_stride, causal axis nor lengths);
//           FINER (queries lie on a finer map than keys: their arrays are [B, *(out * finer),
//           H / places of a cell, ...]); D, DV (head dims of query/key and of value); BIAS; SLAB (bytes); BUFFERS (slabs that
//           there is room for); Q0 Q1 Q2 (the queries of a team), AXIS (of columns),
//           HIGH (rows along it in which the keys of a fragment lie)
// inputs    query [B, *out, H, D], key [B, *L, Hkv, D], value [B, *L, Hkv, DV], params, lengths,
//           rpb [H, 2K-1 per axis] float
// outputs   out [B, *out, H, DV], lse [B, *out, H] float, stats [B, *out, H, 2] float
//           (an array that a problem has not is a null pointer, here and in the other kernels)
// grid      items * H threadgroups
constexpr int FK = na_frags<D>(), FV = na_frags<DV>();  // fragments of a row, or of a part
constexpr int PITCH = na_pitch<T, (D > DV ? D : DV)>();
typedef na_shape<RANK, AXIS, HIGH, (AXIS == 0 ? Q0 : Q1), PITCH> SHAPE;
constexpr int CAPACITY = SLAB / (2 * PITCH * int(sizeof(T))), SIZE = CAPACITY * PITCH;
constexpr bool LATE = NA_PLANE > 0 && RANK < 3 && BUFFERS > 1;  // whether there are registers for it
NA_SHARED na_tour tour;
NA_SLABS T slabs[NA_DYNAMIC(BUFFERS * 2 * SIZE)];
NA_SHARED float exchange[2 * NA_HALF];

const uint thread_index = thread_index_in_threadgroup, threads = threads_per_threadgroup.x;
const int heads = params[NA_HEADS], group = int(threadgroup_position_in_grid.x);
const int item = na_quotient(group, heads), head = group - item * heads;
const na_lane me = na_lane_in_team<T>(thread_index);
int turn = 0;  // of the exchange
const na_point few = na_size(Q0, Q1, Q2), teams = na_teams<RANK>(params);
const na_point many = na_times(few, teams);
na_tile tile = na_query_tile<RANK, PLAIN>(params, lengths, item, many);
const na_source source = na_source_of<RANK, FINER>(params, head, tile);
const na_point corner = na_team_place<AXIS>(thread_index / NA_TEAM_THREADS, teams, few);
const na_rows rows = na_rows_of<RANK, false>(params, tile, source.head, source.heads, source.extent);
const int kv_head = na_quotient(head, params[NA_SHARING]);
const na_table bins = na_table_of<RANK, true>(params);
const DEV float* bias = rpb + head * params[NA_BINS];
const float scale = na_float(params[NA_SCALE]) * NA_LOG2E;

na_mine mine[NA_ROWS];
na_find_mine<RANK, false, Q1, Q2>(mine, params, tile, rows, corner, me);
na_frag<T> q[FK];
na_frag<float> acc_o[FV];
na_load_rows<RANK, D>(q, query, query_strides, tile.batch, source.head, mine, me);
na_clear<FV>(acc_o);
na_softmax softmax = na_softmax_of_none();

const na_seen seen = na_seen_from<RANK, false>(tile, corner, few);
const na_box all = na_seen_from<RANK, false>(tile, na_size(0, 0, 0), many).any;
if (thread_index == 0) na_begin_tour<SHAPE>(tour, params, all, CAPACITY);
if (thread_index == threads - 1) {
  tour.own = na_own_of<RANK, false>(tile, rows, source.head);
  na_come_from<D, DV>(tour, all, key, na_lines_of<RANK, true>(key_strides, tile, kv_head),
                      value, na_lines_of<RANK, true>(value_strides, tile, kv_head));
}
threadgroup_barrier(mem_flags::mem_threadgroup);
na_keep_seen(tour, seen, thread_index);
na_clear_slabs<D, DV>(slabs, BUFFERS * 2 * SIZE, thread_index, threads);

for (int n = 0; n < tour.number; n++) {
  const TGP T* keys = na_next_slab<RANK, D, DV, PITCH, SIZE, BUFFERS, LATE>(
      slabs, key, value, tour, n, thread_index, threads);
  const TGP T* values = keys + na_second<SIZE>();
  na_walk walk = na_walk_over<SHAPE>(na_seen_again(tour, seen, thread_index), tour.slab[n % 3]);
  na_keep_pace<SHAPE>(walk, tour, thread_index, threads);
  bool sent = !LATE;  // for the next one
  for (int across = 0; across < walk.to_width; across += SHAPE::COLUMNS) {
    const na_column column = na_column_at<SHAPE>(walk, mine, across, me);
    for (int i = 0; i < walk.to_depth; i += SHAPE::DEEP) {
      const na_picked at = na_pick<SHAPE>(walk, column, i);
      na_pairs<float> s = {};
      na_dot<FK>(s, q, keys + na_first<FK>(me), at, me);
      if (!sent)  // while that is computed
        na_send_next<RANK, D, DV, PITCH, SIZE, BUFFERS>(slabs, key, value, tour, n,
                                                        thread_index + na_again(tour), threads);
      sent = true;
      na_settle<1>(&s);
      na_add_parts<NA_PAIRS>(s.e, exchange, turn, thread_index, me);
      if (BIAS)
        NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
          const int bin = mine[na_row_of(e)].bin + na_entry_at<SHAPE>(bins, column, i, e);
          const float more = na_biased(na_mask_of<SHAPE>(walk, column, i, e), bias, bin);
          s.e[e] = na_multiply_add(s.e[e], scale, more);
        }
      else na_mask_logits<SHAPE>(s, scale, walk, column, i);
      if (na_exceeds(softmax, s)) na_rescale<FV>(softmax, s, acc_o);
      na_weigh(softmax, s);
      na_accumulate<FV>(acc_o, s, values + na_first<FV>(me), at, me);
    }
  }
  if (!sent)  // this team sees nothing of it
    na_send_next<RANK, D, DV, PITCH, SIZE, BUFFERS>(slabs, key, value, tour, n,
                                                    thread_index + na_again(tour), threads);
}

na_settle<FV>(acc_o);
const uint again = na_again(tour);
na_found found[NA_ROWS];
float norm[NA_ROWS];
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  found[h] = na_find_again<RANK, AXIS, Q0, Q1, Q2>(tour.own, params + again, thread_index + again, me, h);
  softmax.row_sum[h] = na_row_sum(softmax.row_sum[h]);
  norm[h] = found[h].live ? na_reciprocal(softmax.row_sum[h]) : 0.0f;
}
na_store_rows<DV>(out, acc_o, found, norm, me);
NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
  if (!found[h].stored || me.column + me.part != 0) continue;
  const bool live = found[h].live;
  const float row_max = live ? softmax.row_max[h] : 0.0f;
  const float log_sum = live ? na_log2(softmax.row_sum[h]) : 0.0f;
  if (lse != nullptr)
    lse[found[h].row] = live ? (row_max + log_sum) * NA_LN2 : na_float(NA_MINUS_INFINITY);
  stats[found[h].row * 2] = row_max;
  stats[found[h].row * 2 + 1] = log_sum;
}
