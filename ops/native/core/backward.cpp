// P = 2^(S - top - log2 sum), dS = P (dO V^T - delta) with delta = rowsum(dO O) - dLSE;
// dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO, dB = dS summed by relative position.
//
// S - top is a small difference of numbers that may be large, and at most 0: all passes compute the
// same bits of S, the bias, then the products of scaled queries and keys, channel by channel, and
// top is one of them. An LSE of one float32 would have lost the sum.
#include <algorithm>
#include <vector>

#include "attention.h"
#include "gradient.h"

namespace natten {
namespace {

// A number per query and head, [batch, axes, heads], in memory that is kept between calls.
View kept_delta(const Problem& p) {
  static thread_local std::vector<float> kept;
  View view{.head_stride = 1};
  int64_t size = p.heads;
  for (int a = kAxes - 1; a >= 0; --a) {
    view.axis_stride[a] = size;
    size *= p.axis[a].queries();
  }
  view.batch_stride = size;
  kept.resize(std::max<size_t>(kept.size(), size * p.batch));
  view.data = kept.data();
  return view;
}

// Lanes are queries. Leaves delta for the other pass.
class QueryGradient {
 public:
  QueryGradient(const Problem& problem, const Arrays& arrays, const Task& task, const View& delta,
                BiasGradient& d_rpb)
      : p_(problem), a_(arrays), task_(task), delta_(delta), d_rpb_(d_rpb),
        arena_(Arena::of_thread()),
        keys_(arena_, *task.unit, p_.head_dim), values_(arena_, *task.unit, p_.value_dim),
        table_(p_, *task.plan, Lanes::kQueries),
        rows_(*task.unit, *task.plan, table_, arena_),
        query_(take_lanes(arena_, p_.head_dim)), d_query_(take_lanes(arena_, p_.head_dim)),
        out_(take_lanes(arena_, p_.value_dim)), d_out_(take_lanes(arena_, p_.value_dim)),
        weights_(arena_.take<Floats>(TileRows::kChunk)),
        d_scores_(arena_.take<Floats>(TileRows::kChunk)) {
    keys_.read(a_.key, a_.key.at(task.batch, task.kv_head));
    values_.read(a_.value, a_.value.at(task.batch, task.kv_head));
  }

  void run() {
    float* bias = a_.rpb ? arena_.take<float>(table_.size()) : nullptr;
    float* d_bias = d_rpb_ ? arena_.take<float>(table_.size()) : nullptr;
    for (int i = 0; i < p_.sharing(); ++i) {
      const int head = task_.kv_head * p_.sharing() + i;
      if (bias) table_.read(rpb_of(p_, a_.rpb, head), kLog2E, kLeastBias, bias);
      if (d_bias) std::memset(d_bias, 0, table_.size() * sizeof(float));
      rows_.use_head(bias, d_bias);
      for_each_tile(*task_.unit, [&](const int* tile) { run_tile(tile, head); });
      rows_.flush();
      if (d_bias) table_.add_to(d_bias, d_rpb_.of(task_, i));
    }
  }

 private:
  void run_tile(const int* tile, int head) {
    const TileLanes lanes(*task_.unit, *task_.plan, tile);
    rows_.enter(tile);
    const int b = task_.batch;
    load_lanes(a_.query, a_.query.at(b, head), lanes, p_.head_dim, p_.scale * kLog2E, query_);
    load_lanes(a_.out, a_.out.at(b, head), lanes, p_.value_dim, 1, out_);
    load_lanes(a_.d_out, a_.d_out.at(b, head), lanes, p_.value_dim, 1, d_out_);
    const Stats stats = load_stats(a_.stats, a_.stats.at(b, head), lanes);
    Floats delta = -load_one(a_.d_lse, a_.d_lse.at(b, head), lanes);
    for (int d = 0; d < p_.value_dim; ++d) delta += d_out_[d] * out_[d];
    store_one(delta_, delta_.at(b, head), lanes, delta);
    clear(d_query_, p_.head_dim);
    for (int first = 0; first < rows_.count();) first += add_chunk(first, stats, delta);
    store_lanes(a_.d_query, a_.d_query.at(b, head), lanes, p_.head_dim, splat(p_.scale), d_query_);
  }

  int add_chunk(int first, const Stats& stats, Floats delta) {
    const int count = rows_.prepare(first);
    const Floats* bias = rows_.bias();
    const Rows keys = keys_.of(rows_);
    scores(query_, keys, count, p_.head_dim, [&](int j) { return bias[j]; }, weights_);
    scores(d_out_, values_.of(rows_), count, p_.value_dim, [&](int) { return -delta; }, d_scores_);
    for (int j = 0; j < count; ++j) {
      d_scores_[j] *= exp2(weights_[j] - stats.top - stats.log_sum);
    }
    accumulate(d_scores_, keys, count, p_.head_dim, d_query_);
    rows_.add_gradient(d_scores_, count);
    return count;
  }

  const Problem& p_;
  const Arrays& a_;
  const Task& task_;
  const View& delta_;
  BiasGradient& d_rpb_;
  Arena& arena_;
  Panel keys_, values_;
  BiasTable table_;
  TileRows rows_;
  Floats *query_, *d_query_, *out_, *d_out_, *weights_, *d_scores_;
};

// Lanes are keys. The sums of all tiles stay until every query head of the group was added.
class KeyGradient {
 public:
  KeyGradient(const Problem& problem, const Arrays& arrays, const Task& task, const View& delta)
      : p_(problem), a_(arrays), task_(task), delta_(delta), arena_(Arena::of_thread()),
        queries_(arena_, *task.unit, p_.head_dim), d_outs_(arena_, *task.unit, p_.value_dim),
        table_(p_, *task.plan, Lanes::kKeys),
        rows_(*task.unit, *task.plan, table_, arena_),
        top_(arena_.take<float>(task.unit->cells())),
        log_sum_(arena_.take<float>(task.unit->cells())),
        deltas_(arena_.take<float>(task.unit->cells())),
        key_(take_lanes(arena_, p_.head_dim)), value_(take_lanes(arena_, p_.value_dim)),
        weights_(arena_.take<Floats>(TileRows::kChunk)),
        d_scores_(arena_.take<Floats>(TileRows::kChunk)) {}

  void run() {
    const Unit& unit = *task_.unit;
    int tiles = 1;
    for (const Range& range : unit.tiles) tiles *= range.size();
    const int key_size = padded(p_.head_dim, kLanes), value_size = padded(p_.value_dim, kLanes);
    Floats* d_keys = arena_.take<Floats>(int64_t{1} * tiles * key_size);
    Floats* d_values = arena_.take<Floats>(int64_t{1} * tiles * value_size);
    clear(d_keys, tiles * key_size);
    clear(d_values, tiles * value_size);
    float* bias = a_.rpb ? arena_.take<float>(table_.size()) : nullptr;
    for (int i = 0; i < p_.sharing(); ++i) {
      const int head = task_.kv_head * p_.sharing() + i;
      read(head);
      if (bias) table_.read(rpb_of(p_, a_.rpb, head), kLog2E, kLeastBias, bias);
      rows_.use_head(bias, nullptr);
      int64_t t = 0;
      for_each_tile(unit, [&](const int* tile) {
        add_tile(tile, d_keys + t * key_size, d_values + t * value_size);
        ++t;
      });
    }
    int64_t t = 0;
    for_each_tile(unit, [&](const int* tile) {
      const TileLanes lanes(unit, *task_.plan, tile);
      const int b = task_.batch, h = task_.kv_head;
      store_lanes(a_.d_key, a_.d_key.at(b, h), lanes, p_.head_dim, splat(kLn2),
                  d_keys + t * key_size);
      store_lanes(a_.d_value, a_.d_value.at(b, h), lanes, p_.value_dim, splat(1),
                  d_values + t * value_size);
      ++t;
    });
  }

 private:
  void read(int head) {
    const int b = task_.batch;
    const Unit& unit = *task_.unit;
    queries_.read(a_.query, a_.query.at(b, head), p_.scale * kLog2E);
    d_outs_.read(a_.d_out, a_.d_out.at(b, head));
    for_each_row(a_.stats, unit, a_.stats.at(b, head), [&](int cell, int64_t at) {
      top_[cell] = number(a_.stats, at);
      log_sum_[cell] = number(a_.stats, at + a_.stats.channel_stride);
    });
    for_each_row(delta_, unit, delta_.at(b, head),
                 [&](int cell, int64_t at) { deltas_[cell] = number(delta_, at); });
  }

  void add_tile(const int* tile, Floats* d_key, Floats* d_value) {
    const TileLanes lanes(*task_.unit, *task_.plan, tile);
    const int b = task_.batch, h = task_.kv_head;
    rows_.enter(tile);
    load_lanes(a_.key, a_.key.at(b, h), lanes, p_.head_dim, 1, key_);
    load_lanes(a_.value, a_.value.at(b, h), lanes, p_.value_dim, 1, value_);
    for (int first = 0; first < rows_.count();) first += add_chunk(first, d_key, d_value);
  }

  int add_chunk(int first, Floats* d_key, Floats* d_value) {
    const int count = rows_.prepare(first);
    const Floats* bias = rows_.bias();
    const Rows queries = queries_.of(rows_), d_outs = d_outs_.of(rows_);
    const float *top = top_ + rows_.origin(), *log_sum = log_sum_ + rows_.origin();
    const float* delta = deltas_ + rows_.origin();
    const int* at = rows_.cells();
    scores(key_, queries, count, p_.head_dim, [&](int j) { return bias[j]; }, weights_);
    scores(value_, d_outs, count, p_.value_dim, [&](int j) { return splat(-delta[at[j]]); },
           d_scores_);
    for (int j = 0; j < count; ++j) {
      weights_[j] = exp2(weights_[j] - top[at[j]] - log_sum[at[j]]);
      d_scores_[j] *= weights_[j];
    }
    accumulate(weights_, d_outs, count, p_.value_dim, d_value);
    accumulate(d_scores_, queries, count, p_.head_dim, d_key);
    return count;
  }

  const Problem& p_;
  const Arrays& a_;
  const Task& task_;
  const View& delta_;
  Arena& arena_;
  Panel queries_, d_outs_;
  BiasTable table_;
  TileRows rows_;
  float *top_, *log_sum_, *deltas_;
  Floats *key_, *value_, *weights_, *d_scores_;
};

}  // namespace

void attention_backward(const Problem& problem, const Arrays& arrays) {
  if (arrays.lengths) {
    fill_queries(arrays.d_query, problem, problem.head_dim, 0);
    fill_keys(arrays.d_key, problem, problem.head_dim, 0);
    fill_keys(arrays.d_value, problem, problem.value_dim, 0);
  }
  const Schedule by_query(problem, arrays, Lanes::kQueries);
  BiasGradient d_rpb(problem, arrays, by_query);
  const View delta = kept_delta(problem);
  by_query.run([&](const Task& task) { QueryGradient(problem, arrays, task, delta, d_rpb).run(); });
  d_rpb.reduce();
  Schedule(problem, arrays, Lanes::kKeys).run([&](const Task& task) {
    KeyGradient(problem, arrays, task, delta).run();
  });
}

}  // namespace natten
