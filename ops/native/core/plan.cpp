#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>

#include "window.h"  // metal/window.h, which the kernels share

namespace natten {
namespace {

constexpr int kBoxBytes = 512 * 1024;  // packed rows of a unit: well inside a second-level cache
constexpr int kUnits = 16;              // fixed, so that sums do not depend on the machine

// Queries o with (o * stride) % dilation == group: an arithmetic progression, perhaps empty.
std::vector<int> first_and_step(const AxisSpec& axis, int group) {
  const int step = axis.dilation / std::gcd(axis.stride, axis.dilation);
  for (int o = 0; o < step; ++o) {
    if (static_cast<int64_t>(o) * axis.stride % axis.dilation == group) return {o, step};
  }
  return {};
}

AxisPlan query_lanes(const AxisSpec& axis, int group) {
  AxisPlan plan;
  plan.row_at = {group, axis.dilation};
  const auto queries = first_and_step(axis, group);
  if (queries.empty()) return plan;
  plan.lane_at = {queries[0], queries[1]};
  plan.lane_ordinal = {queries[0] * axis.stride / axis.dilation,
                    queries[1] * axis.stride / axis.dilation};
  const int tokens = na_class_size(axis.length, axis.dilation, group);
  for (int o = queries[0], i = 0; o < axis.queries(); o += queries[1], ++i) {
    const na_span keys = na_keys_of(plan.lane_ordinal(i), tokens, axis.kernel, axis.window_stride,
                                    axis.causal);
    plan.sees.push_back({keys.first, keys.last});
  }
  return plan;
}

// Windows begin and end in the order of their queries, so a key is seen by a range of them.
AxisPlan key_lanes(const AxisSpec& axis, int group) {
  const AxisPlan forward = query_lanes(axis, group);
  AxisPlan plan;
  plan.lane_at = forward.row_at;
  plan.row_at = forward.lane_at;
  plan.row_ordinal = forward.lane_ordinal;
  for (const Range& keys : forward.sees) plan.row_window.push_back(keys.begin);
  const int tokens = na_class_size(axis.length, axis.dilation, group);
  Range seen;
  for (int key = 0; key < tokens; ++key) {
    while (seen.begin < forward.lanes() && forward.sees[seen.begin].end <= key) ++seen.begin;
    while (seen.end < forward.lanes() && forward.sees[seen.end].begin <= key) ++seen.end;
    plan.sees.push_back({seen.begin, std::max(seen.begin, seen.end)});
  }
  return plan;
}

Range unite(Range a, Range b) {
  if (a.begin >= a.end) return b;
  if (b.begin >= b.end) return a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

bool same_shape(const AxisPlan& axis, int a, int b) {
  const Range rows_a = axis.tile_sees[a], rows_b = axis.tile_sees[b];
  const int shift = rows_b.begin - rows_a.begin;
  if (rows_b.end - rows_a.end != shift) return false;
  if ((b - a) * axis.tile * axis.lane_ordinal.step != shift * axis.row_ordinal.step) return false;
  for (int lane = 0; lane < axis.tile; ++lane) {
    const Range of_a = axis.lane_sees(a, lane), of_b = axis.lane_sees(b, lane);
    if (of_b.begin - of_a.begin != shift || of_b.end - of_a.end != shift) return false;
  }
  return true;
}

// Rows that are met by tiles of a size, summed over the tiles.
double pairs(const AxisPlan& axis, int tile) {
  double sum = 0;
  for (int first = 0; first < axis.lanes(); first += tile) {
    Range rows;
    for (int i = first; i < std::min(first + tile, axis.lanes()); ++i) {
      rows = unite(rows, axis.sees[i]);
    }
    sum += rows.size();
  }
  return sum;
}

// Rows that the tiles [i, i + count) see, for the i where they are most.
int widest(const AxisPlan& axis, int count) {
  int most = 0;
  for (int i = 0; i < axis.tiles(); i += count) {
    Range rows;
    for (int t = i; t < std::min(i + count, axis.tiles()); ++t) {
      rows = unite(rows, axis.tile_sees[t]);
    }
    most = std::max(most, rows.size());
  }
  return most;
}

}  // namespace

void AxisPlan::cut(int lanes_per_tile) {
  tile = lanes_per_tile;
  tile_sees.clear();
  shape.clear();
  for (int first = 0; first < lanes(); first += tile) {
    Range rows;
    for (int i = first; i < std::min(first + tile, lanes()); ++i) rows = unite(rows, sees[i]);
    tile_sees.push_back(rows);
    const int t = tiles() - 1;
    const bool repeats = t > 0 && same_shape(*this, shape[t - 1], t);
    shape.push_back(repeats ? shape[t - 1] : t);
  }
}

Plan::Plan(const Problem& problem, Lanes lanes) {
  for (int a = 0; a < kAxes; ++a) {
    for (int g = 0; g < std::min(problem.axis[a].dilation, problem.axis[a].length); ++g) {
      groups_[a].push_back(lanes == Lanes::kQueries ? query_lanes(problem.axis[a], g)
                                                    : key_lanes(problem.axis[a], g));
    }
    if (groups_[a].empty()) return;  // a sample of length 0
  }
  choose_tile();
  for (int a = 0; a < kAxes; ++a) {
    for (AxisPlan& axis : groups_[a]) {
      axis.cut(tile_[a]);
      for (int t = 0; t < axis.tiles(); ++t) {
        const int first = axis.lane_ordinal(t * axis.tile);
        const int last = axis.lane_ordinal((t + 1) * axis.tile);
        const Range rows = axis.tile_sees[t];
        reach_[a] = std::max({reach_[a], std::abs(last - axis.row_ordinal(rows.begin)),
                              std::abs(first - axis.row_ordinal(rows.end))});
      }
    }
  }
  choose_box(problem);
  list_units();
}

// The box of kLanes lanes with the fewest pairs of lane and row. Every axis counts by itself:
// the product over axes of the rows that its tiles see.
void Plan::choose_tile() {
  double cheapest = -1;
  for (int t0 = 1; t0 <= kLanes; t0 *= 2) {
    for (int t1 = 1; t0 * t1 <= kLanes; t1 *= 2) {
      const int shape[kAxes] = {t0, t1, kLanes / (t0 * t1)};
      double cost = 1;
      for (int a = 0; a < kAxes; ++a) cost *= pairs(groups_[a][0], shape[a]);
      if (cheapest < 0 || cost < cheapest) {
        cheapest = cost;
        std::copy(shape, shape + kAxes, tile_);
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    lane_[0][l] = l / (tile_[1] * tile_[2]);
    lane_[1][l] = l / tile_[2] % tile_[1];
    lane_[2][l] = l % tile_[2];
  }
}

void Plan::choose_box(const Problem& problem) {
  const int64_t budget = kBoxBytes / sizeof(float) / (problem.head_dim + problem.value_dim);
  for (int a = 0; a < kAxes; ++a) box_[a] = std::max(1, groups_[a][0].tiles());
  for (;;) {
    int64_t cells = 1, units = int64_t{1} * problem.batch * problem.kv_heads;
    for (int a = 0; a < kAxes; ++a) {
      cells *= widest(groups_[a][0], box_[a]);
      units *= groups_[a].size() * ((groups_[a][0].tiles() + box_[a] - 1) / box_[a]);
    }
    int* axis = std::find_if(box_, box_ + kAxes, [](int tiles) { return tiles > 1; });
    if ((cells <= budget && units >= kUnits) || axis == box_ + kAxes) return;
    *axis = (*axis + 1) / 2;
  }
}

void Plan::list_units() {
  const auto list = [this](const AxisPlan* const* group, const int* box) {
    Unit unit{};
    for (int a = 0; a < kAxes; ++a) {
      const AxisPlan& axis = *group[a];
      unit.axis[a] = &axis;
      unit.tiles[a].begin = box[a] * box_[a];
      unit.tiles[a].end = std::min(unit.tiles[a].begin + box_[a], axis.tiles());
      for (int t = unit.tiles[a].begin; t < unit.tiles[a].end; ++t) {
        unit.rows[a] = unite(unit.rows[a], axis.tile_sees[t]);
      }
    }
    units_.push_back(unit);
  };
  Range groups[kAxes], boxes[kAxes];
  for (int a = 0; a < kAxes; ++a) groups[a] = {0, static_cast<int>(groups_[a].size())};
  for_each_point(groups, [&](const int* g) {
    const AxisPlan* group[kAxes];
    for (int a = 0; a < kAxes; ++a) {
      group[a] = &groups_[a][g[a]];
      boxes[a] = {0, (group[a]->tiles() + box_[a] - 1) / box_[a]};
    }
    for_each_point(boxes, [&](const int* box) { list(group, box); });
  });
}

std::shared_ptr<const Plan> Plan::of(const Problem& problem, Lanes lanes) {
  constexpr size_t kKept = 256;
  using Key = std::pair<Problem, Lanes>;
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Plan>> plans;
  std::lock_guard lock(mutex);
  if (plans.size() > kKept) plans.clear();
  auto& plan = plans[Key(problem, lanes)];
  if (!plan) plan = std::make_shared<Plan>(problem, lanes);
  return plan;
}

}  // namespace natten
