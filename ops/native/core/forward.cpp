#include <limits>

#include "attention.h"
#include "task.h"

namespace natten {
namespace {

class Forward {
 public:
  Forward(const Problem& problem, const Arrays& arrays, const Task& task)
      : p_(problem), a_(arrays), task_(task), arena_(Arena::of_thread()),
        keys_(arena_, *task.unit, p_.head_dim), values_(arena_, *task.unit, p_.value_dim),
        table_(p_, *task.plan, Lanes::kQueries),
        rows_(*task.unit, *task.plan, table_, arena_),
        query_(take_lanes(arena_, p_.head_dim)), out_(take_lanes(arena_, p_.value_dim)),
        weights_(arena_.take<Floats>(TileRows::kChunk)) {
    keys_.read(a_.key, a_.key.at(task.batch, task.kv_head));
    values_.read(a_.value, a_.value.at(task.batch, task.kv_head));
  }

  void run() {
    float* bias = a_.rpb ? arena_.take<float>(table_.size()) : nullptr;
    for (int i = 0; i < p_.sharing(); ++i) {
      const int head = task_.kv_head * p_.sharing() + i;
      if (bias) table_.read(rpb_of(p_, a_.rpb, head), kLog2E, kLeastBias, bias);
      rows_.use_head(bias, nullptr);
      for_each_tile(*task_.unit, [&](const int* tile) { run_tile(tile, head); });
    }
  }

 private:
  void run_tile(const int* tile, int head) {
    const TileLanes lanes(*task_.unit, *task_.plan, tile);
    rows_.enter(tile);
    const int64_t at = a_.query.at(task_.batch, head);
    load_lanes(a_.query, at, lanes, p_.head_dim, p_.scale * kLog2E, query_);
    clear(out_, p_.value_dim);
    highest_ = splat(kMasked);
    total_ = Floats{};
    for (int first = 0; first < rows_.count();) first += add_chunk(first);
    store_lanes(a_.out, a_.out.at(task_.batch, head), lanes, p_.value_dim, 1.0f / total_, out_);
    const Floats log_total = log(total_), lse = highest_ * kLn2 + log_total;
    store_one(a_.lse, a_.lse.at(task_.batch, head), lanes, lse);
    const Stats stats{highest_, log_total * kLog2E};
    store_stats(a_.stats, a_.stats.at(task_.batch, head), lanes, stats);
  }

  // Softmax over chunks of rows: what was summed is rescaled when a higher score turns up.
  int add_chunk(int first) {
    const int count = rows_.prepare(first);
    const Floats* bias = rows_.bias();
    scores(query_, keys_.of(rows_), count, p_.head_dim, [&](int j) { return bias[j]; }, weights_);
    Floats top = highest_;
    for (int j = 0; j < count; ++j) top = max(weights_[j], top);
    if (first > 0) {
      const Floats rescale = exp2(highest_ - top);
      total_ *= rescale;
      for (int d = 0; d < p_.value_dim; ++d) out_[d] *= rescale;
    }
    Floats total = total_;
    for (int j = 0; j < count; ++j) {
      weights_[j] = exp2(weights_[j] - top);
      total += weights_[j];
    }
    highest_ = top;
    total_ = total;
    accumulate(weights_, values_.of(rows_), count, p_.value_dim, out_);
    return count;
  }

  const Problem& p_;
  const Arrays& a_;
  const Task& task_;
  Arena& arena_;
  Panel keys_, values_;
  BiasTable table_;
  TileRows rows_;
  Floats *query_, *out_, *weights_;
  Floats highest_, total_;
};

}  // namespace

void attention_forward(const Problem& problem, const Arrays& arrays) {
  if (arrays.lengths) {
    fill_queries(arrays.out, problem, problem.value_dim, 0);
    fill_queries(arrays.lse, problem, 1, -std::numeric_limits<float>::infinity());
    fill_queries(arrays.stats, problem, 2, 0);
  }
  Schedule(problem, arrays, Lanes::kQueries).run([&](const Task& task) {
    Forward(problem, arrays, task).run();
  });
}

}  // namespace natten
