// Whether work is cut as plan.h says. Any cut gives the right numbers: this is about their price.
#pragma once

#include <algorithm>

#include "plan.h"

namespace natten {

// Rows between the first and the last one that tiles of a size see, summed over the tiles.
inline double rows_met(const AxisPlan& axis, int tile) {
  double sum = 0;
  for (int i = 0; i < axis.lanes();) {
    int first = 1 << 30, last = -1;
    for (int end = i + tile; i < axis.lanes() && i < end; ++i) {
      if (axis.sees[i].size() <= 0) continue;
      first = std::min(first, axis.sees[i].begin);
      last = std::max(last, axis.sees[i].end);
    }
    if (last >= 0) sum += last - first;
  }
  return sum;
}

// What is wrong with a plan; null if nothing is.
inline const char* plan_fault(const Problem& p, Lanes lanes) {
  const Plan plan(p, lanes);
  if (plan.units() == 0) return nullptr;
  const auto price = [&](int t0, int t1, int t2) {
    const AxisPlan* const* axis = plan.unit(0).axis;  // of the first dilation group
    return rows_met(*axis[0], t0) * rows_met(*axis[1], t1) * rows_met(*axis[2], t2);
  };
  if (plan.tile(0) * plan.tile(1) * plan.tile(2) != kLanes) return "a tile has not kLanes lanes";
  const double chosen = price(plan.tile(0), plan.tile(1), plan.tile(2));
  for (int t0 = 1; t0 <= kLanes; t0 *= 2) {
    for (int t1 = 1; t0 * t1 <= kLanes; t1 *= 2) {
      if (price(t0, t1, kLanes / t0 / t1) < chosen) return "there is a cheaper tile";
    }
  }
  // Boxes are those of the first dilation group; the others differ by a row, or have no lanes.
  const Unit& unit = plan.unit(0);
  int64_t units = int64_t{1} * p.batch * p.kv_heads, groups = units, rows = 1;
  bool is_cut = false, is_single = true;
  for (int a = 0; a < kAxes; ++a) {
    const int box = unit.tiles[a].size(), tiles = unit.axis[a]->tiles();
    groups *= std::min(p.axis[a].dilation, p.axis[a].length);
    units *= std::min(p.axis[a].dilation, p.axis[a].length) * ((tiles + box - 1) / box);
    rows *= static_cast<int64_t>(rows_met(*unit.axis[a], 1 << 28));
    is_cut |= box < tiles;
    is_single &= box == 1;
  }
  const int64_t room = 512 * 1024 / 4 / (p.head_dim + p.value_dim);
  if (!is_single && unit.cells() > room) return "a box has more rows than there is room for";
  if (!is_single && units < 16) return "there are too few units";
  if (is_cut && groups >= 16 && rows <= room) return "it is cut without need";
  return nullptr;
}

}  // namespace natten
