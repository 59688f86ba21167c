// Attention in two steps, with the scores in memory: [..., heads, slots], a slot per key of the
// window. Three sums make up the operations and all their gradients.
#include <algorithm>
#include <limits>

#include "attention.h"
#include "gradient.h"

namespace natten {
namespace {

constexpr float kNoLimit = -std::numeric_limits<float>::infinity();

// The slots of a window, in the order of its keys; the last axis runs fastest.
struct Slots {
  int count, pitch, step[kAxes];

  explicit Slots(const Problem& p)
      : count(p.slots()), pitch(padded(count, kLanes)),
        step{p.axis[1].kernel * p.axis[2].kernel, p.axis[2].kernel, 1} {}

  int at(const int* key) const { return key[0] * step[0] + key[1] * step[1] + key[2] * step[2]; }
};

// What the three sums share: one task's rows, and per lane the slot of each of them.
class Sum {
 protected:
  Sum(const Problem& problem, const Task& task, Lanes lanes, int channels)
      : p_(problem), task_(task), arena_(Arena::of_thread()), slots_(problem),
        rows_panel_(arena_, *task.unit, channels), table_(problem, *task.plan, lanes),
        rows_(*task.unit, *task.plan, table_, arena_), channels_(channels),
        lane_(take_lanes(arena_, channels)), weights_(arena_.take<Floats>(TileRows::kChunk)),
        by_slot_(arena_.take<float>(int64_t{1} * kLanes * slots_.pitch)) {}

  // Calls body(row, lane, slot) for the prepared rows that a query lane sees.
  template <class Body>
  void for_each_slot(int count, Body body) {
    int first[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int key[kAxes] = {rows_.begin(0, l), rows_.begin(1, l), rows_.begin(2, l)};
      first[l] = slots_.at(key);
    }
    for (int j = 0; j < count; ++j) {
      const int slot = slots_.at(rows_.row(j));
      const Ints visible = rows_.bias()[j] > kMasked / 2;
      for (int l = 0; l < kLanes; ++l) {
        if (visible[l]) body(j, l, slot - first[l]);
      }
    }
  }

  float* slots_of(int lane) { return by_slot_ + int64_t{1} * lane * slots_.pitch; }

  const Problem& p_;
  const Task& task_;
  Arena& arena_;
  const Slots slots_;
  Panel rows_panel_;
  BiasTable table_;
  TileRows rows_;
  int channels_;
  Floats *lane_, *weights_;
  float* by_slot_;
};

// scores[query, slot] = scale * lanes[query] . rows[key] (+ rpb): qk, and the gradient of attn.
class Dots : Sum {
 public:
  Dots(const Problem& problem, const Task& task, int channels)
      : Sum(problem, task, Lanes::kQueries, channels) {}

  void run(const View& lanes_view, const View& rows_view, float scale, const float* rpb,
           float missing, const View& out) {
    const Unit& unit = *task_.unit;
    rows_panel_.read(rows_view, rows_view.at(task_.batch, task_.kv_head));
    float* bias = rpb ? arena_.take<float>(table_.size()) : nullptr;
    for (int i = 0; i < p_.sharing(); ++i) {
      const int head = task_.kv_head * p_.sharing() + i;
      if (bias) table_.read(rpb_of(p_, rpb, head), 1, kNoLimit, bias);
      rows_.use_head(bias, nullptr);
      for_each_tile(unit, [&](const int* tile) {
        const TileLanes lanes(unit, *task_.plan, tile);
        rows_.enter(tile);
        load_lanes(lanes_view, lanes_view.at(task_.batch, head), lanes, channels_, scale, lane_);
        std::fill(by_slot_, by_slot_ + kLanes * slots_.pitch, missing);
        for (int first = 0; first < rows_.count();) first += add_chunk(first);
        int64_t at[kLanes];
        lanes.offsets(out, out.at(task_.batch, head), at);
        for (int l = 0; l < kLanes; ++l) {
          if (lanes.valid[l]) write_row(out, at[l], slots_.count, slots_of(l));
        }
      });
    }
  }

 private:
  int add_chunk(int first) {
    const int count = rows_.prepare(first);
    const Floats* bias = rows_.bias();
    scores(lane_, rows_panel_.of(rows_), count, channels_, [&](int j) { return bias[j]; },
           weights_);
    for_each_slot(count, [&](int j, int l, int slot) { slots_of(l)[slot] = weights_[j][l]; });
    return count;
  }
};

// out[query] = scale * sum over slots of weights[query, slot] * rows[key]: av, and the gradient of
// query; the sums of the weights by relative position are the gradient of rpb.
class QuerySum : Sum {
 public:
  QuerySum(const Problem& problem, const Task& task, int channels)
      : Sum(problem, task, Lanes::kQueries, channels) {}

  void run(const View& weights_view, const View& rows_view, float scale, BiasGradient* d_rpb,
           const View& out) {
    const Unit& unit = *task_.unit;
    rows_panel_.read(rows_view, rows_view.at(task_.batch, task_.kv_head));
    const bool biased = d_rpb && *d_rpb;
    float* d_bias = biased ? arena_.take<float>(table_.size()) : nullptr;
    for (int i = 0; i < p_.sharing(); ++i) {
      const int head = task_.kv_head * p_.sharing() + i;
      if (d_bias) std::fill(d_bias, d_bias + table_.size(), 0.0f);
      rows_.use_head(nullptr, d_bias);
      for_each_tile(unit, [&](const int* tile) {
        const TileLanes lanes(unit, *task_.plan, tile);
        rows_.enter(tile);
        int64_t at[kLanes];
        lanes.offsets(weights_view, weights_view.at(task_.batch, head), at);
        for (int l = 0; l < kLanes; ++l) {
          if (lanes.valid[l]) read_row(weights_view, at[l], slots_.count, slots_of(l));
          if (!lanes.valid[l]) std::fill(slots_of(l), slots_of(l) + slots_.pitch, 0.0f);
        }
        clear(lane_, channels_);
        for (int first = 0; first < rows_.count();) first += add_chunk(first);
        store_lanes(out, out.at(task_.batch, head), lanes, channels_, splat(scale), lane_);
      });
      rows_.flush();
      if (d_bias) table_.add_to(d_bias, d_rpb->of(task_, i));
    }
  }

 private:
  int add_chunk(int first) {
    const int count = rows_.prepare(first);
    clear(weights_, count);
    for_each_slot(count, [&](int j, int l, int slot) { weights_[j][l] = slots_of(l)[slot]; });
    accumulate(weights_, rows_panel_.of(rows_), count, channels_, lane_);
    rows_.add_gradient(weights_, count);
    return count;
  }
};

// out[key] = scale * sum over queries of weights[query, slot of key] * rows[query]: the gradients
// of key and of value.
class KeySum : Sum {
 public:
  KeySum(const Problem& problem, const Task& task, int channels)
      : Sum(problem, task, Lanes::kKeys, channels) {}

  void run(const View& weights_view, const View& rows_view, float scale, const View& out) {
    const Unit& unit = *task_.unit;
    int tiles = 1, t = 0;
    for (const Range& range : unit.tiles) tiles *= range.size();
    const int size = padded(channels_, kLanes);
    Floats* sums = arena_.take<Floats>(int64_t{1} * tiles * size);
    clear(sums, tiles * size);
    rows_.use_head(nullptr, nullptr);
    for (int i = 0; i < p_.sharing(); ++i) {
      const int head = task_.kv_head * p_.sharing() + i;
      rows_panel_.read(rows_view, rows_view.at(task_.batch, head));
      t = 0;
      for_each_tile(unit, [&](const int* tile) {
        rows_.enter(tile);
        for (int first = 0; first < rows_.count();) {
          first += add_chunk(first, tile, weights_view, head, sums + int64_t{1} * t * size);
        }
        ++t;
      });
    }
    t = 0;
    for_each_tile(unit, [&](const int* tile) {
      const TileLanes lanes(unit, *task_.plan, tile);
      store_lanes(out, out.at(task_.batch, task_.kv_head), lanes, channels_, splat(scale),
                  sums + int64_t{1} * t++ * size);
    });
  }

 private:
  int add_chunk(int first, const int* tile, const View& weights_view, int head, Floats* sum) {
    const Unit& unit = *task_.unit;
    const int count = rows_.prepare(first);
    const Plan& plan = *task_.plan;
    for (int j = 0; j < count; ++j) {
      int from[kAxes];  // the first lane of the tile, counted from the first key of the query
      int64_t at = weights_view.at(task_.batch, head);
      for (int a = 0; a < kAxes; ++a) {
        const AxisPlan& axis = *unit.axis[a];
        const int query = axis.tile_sees[tile[a]].begin + rows_.row(j)[a];
        from[a] = tile[a] * plan.tile(a) - axis.row_window[query];
        at += axis.row_at(query) * weights_view.axis_stride[a];
      }
      read_row(weights_view, at, slots_.count, by_slot_);
      const Ints visible = rows_.bias()[j] > kMasked / 2;
      weights_[j] = Floats{};
      for (int l = 0; l < kLanes; ++l) {
        const int key[kAxes] = {from[0] + plan.lane(0)[l], from[1] + plan.lane(1)[l],
                                from[2] + plan.lane(2)[l]};
        if (visible[l]) weights_[j][l] = by_slot_[slots_.at(key)];
      }
    }
    accumulate(weights_, rows_panel_.of(rows_), count, channels_, sum);
    return count;
  }
};

}  // namespace

void qk_forward(const Problem& p, const Arrays& a) {
  constexpr float kMissing = -std::numeric_limits<float>::infinity();
  if (a.lengths) fill_queries(a.attn, p, p.slots(), kMissing);
  Schedule(p, a, Lanes::kQueries).run([&](const Task& task) {
    Dots(p, task, p.head_dim).run(a.query, a.key, p.scale, a.rpb, kMissing, a.attn);
  });
}

void qk_backward(const Problem& p, const Arrays& a) {
  if (a.lengths) {
    fill_queries(a.d_query, p, p.head_dim, 0);
    fill_keys(a.d_key, p, p.head_dim, 0);
  }
  const Schedule by_query(p, a, Lanes::kQueries);
  BiasGradient d_rpb(p, a, by_query);
  by_query.run([&](const Task& task) {
    QuerySum(p, task, p.head_dim).run(a.d_attn, a.key, p.scale, &d_rpb, a.d_query);
  });
  d_rpb.reduce();
  Schedule(p, a, Lanes::kKeys).run([&](const Task& task) {
    KeySum(p, task, p.head_dim).run(a.d_attn, a.query, p.scale, a.d_key);
  });
}

void av_forward(const Problem& p, const Arrays& a) {
  if (a.lengths) fill_queries(a.out, p, p.value_dim, 0);
  Schedule(p, a, Lanes::kQueries).run([&](const Task& task) {
    QuerySum(p, task, p.value_dim).run(a.attn, a.value, 1, nullptr, a.out);
  });
}

void av_backward(const Problem& p, const Arrays& a) {
  if (a.lengths) {
    fill_queries(a.d_attn, p, p.slots(), 0);
    fill_keys(a.d_value, p, p.value_dim, 0);
  }
  Schedule(p, a, Lanes::kQueries).run([&](const Task& task) {
    Dots(p, task, p.value_dim).run(a.d_out, a.value, 1, nullptr, 0, a.d_attn);
  });
  Schedule(p, a, Lanes::kKeys).run([&](const Task& task) {
    KeySum(p, task, p.value_dim).run(a.attn, a.d_out, 1, a.d_value);
  });
}

}  // namespace natten
