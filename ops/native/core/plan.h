// How a call is cut: dilation groups, tiles of lanes, boxes of tiles: the units of work.
//
// Every computation here has `lanes`, which vectors run over, and `rows`, which each lane sees a
// window of. In the forward pass the lanes are queries and the rows keys; the gradients of key and
// value swap them, so that each output is summed by one thread, in one order, without atomics.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "problem.h"
#include "simd.h"

namespace natten {

struct Range {
  int begin = 0, end = 0;
  int size() const { return end - begin; }
};

enum class Lanes { kQueries, kKeys };

// The i-th lane or row of a dilation group lies at first + i * step.
struct Progression {
  int first = 0, step = 1;
  int operator()(int i) const { return first + i * step; }
};

// One axis of one dilation group.
struct AxisPlan {
  int tile{};                             // lanes per tile
  Progression lane_at, row_at;            // coordinates in the arrays
  Progression lane_ordinal, row_ordinal;  // in the group, which relative positions compare
  std::vector<Range> sees;                // per lane: the rows that it sees
  std::vector<int> row_window;            // where lanes are keys: per row, the first key it sees
  std::vector<Range> tile_sees;           // per tile: the union over its lanes
  std::vector<int> shape;                 // per tile: the first one of the same relative geometry

  int lanes() const { return static_cast<int>(sees.size()); }
  int tiles() const { return static_cast<int>(tile_sees.size()); }
  // Lanes beyond the last one see what the last one sees; their results are dropped.
  Range lane_sees(int tile_index, int lane) const {
    return sees[std::min(tile_index * tile + lane, lanes() - 1)];
  }
  void cut(int lanes_per_tile);
};

// A box of tiles of one dilation group, with the box of rows that it sees.
struct Unit {
  const AxisPlan* axis[kAxes];
  Range tiles[kAxes];
  Range rows[kAxes];

  int extent(int a) const { return rows[a].size(); }
  int cells() const { return extent(0) * extent(1) * extent(2); }
};

// Calls body(point) for every point z, y, x of a box; x runs fastest.
template <class Body>
void for_each_point(const Range (&box)[kAxes], Body body) {
  int at[kAxes];
  for (at[0] = box[0].begin; at[0] < box[0].end; ++at[0]) {
    for (at[1] = box[1].begin; at[1] < box[1].end; ++at[1]) {
      for (at[2] = box[2].begin; at[2] < box[2].end; ++at[2]) body(at);
    }
  }
}

class Plan {
 public:
  Plan(const Problem& problem, Lanes lanes);

  // One plan per problem is kept, and shared by the calls of a model.
  static std::shared_ptr<const Plan> of(const Problem& problem, Lanes lanes);

  int units() const { return static_cast<int>(units_.size()); }
  const Unit& unit(int i) const { return units_[i]; }
  int tile(int axis) const { return tile_[axis]; }
  // Where each lane of a tile lies in it.
  const int* lane(int axis) const { return lane_[axis]; }
  // The largest distance of the ordinals of a lane and a row that one tile brings together.
  int reach(int axis) const { return reach_[axis]; }

 private:
  void choose_tile();
  void choose_box(const Problem& problem);
  void list_units();

  std::vector<AxisPlan> groups_[kAxes];
  std::vector<Unit> units_;
  int tile_[kAxes] = {};
  int box_[kAxes] = {};  // tiles of a unit
  int reach_[kAxes] = {};
  int lane_[kAxes][kLanes] = {};
};

}  // namespace natten
