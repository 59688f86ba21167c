// The rows of a tile and what is added to their scores: the relative position bias, and kMasked
// where a lane does not see a row.
#pragma once

#include "panel.h"

namespace natten {

// The bias of one head by relative position, ordinal of the lane minus that of the row, with zeros
// around it so that every pair which a tile brings together has an entry.
class BiasTable {
 public:
  BiasTable(const Problem& problem, const Plan& plan, Lanes lanes);

  int size() const { return size_; }
  int stride(int axis) const { return stride_[axis]; }
  int center(int axis) const { return reach_[axis]; }

  // Of one head: factor * rpb, but not below `least`.
  void read(const float* rpb, float factor, float least, float* table) const;
  void add_to(const float* table, float* d_rpb) const;

 private:
  template <class Body>
  void for_each_entry(Body body) const;

  int kernel_[kAxes], reach_[kAxes], stride_[kAxes];
  int size_;
  bool reversed_;  // rpb counts key minus query
};

// One tile after another, its rows a chunk at a time. Tiles of one shape share the work.
class TileRows {
 public:
  static constexpr int kChunk = 128;

  TileRows(const Unit& unit, const Plan& plan, const BiasTable& table, Arena& arena);

  // The bias of a head and where to sum its gradient; each may be null.
  void use_head(const float* bias, float* gradient);
  void enter(const int* tile);
  int prepare(int first);  // prepares the rows [first, first + result) of the tile
  void add_gradient(const Floats* d_scores, int count);
  void flush();

  int count() const { return extent_[0] * extent_[1] * extent_[2]; }
  // The tile's first row, counted from the unit's first row: on one axis, and as a cell.
  int first(int axis) const { return first_[axis]; }
  int origin() const { return origin_; }
  const int* cells() const { return cells_; }  // of the prepared rows, counted from there
  int prepared() const { return prepared_count_; }
  int version() const { return version_; }  // changes with the prepared rows
  const Floats* bias() const { return bias_; }
  // The coordinates of a prepared row, counted from the first row of the tile.
  const int* row(int j) const { return rows_[j]; }
  // The first row that a lane sees.
  int begin(int axis, int lane) const { return begin_[axis][lane]; }

 private:
  void enter_axis(int a, int tile);
  template <int Run>
  void fill(int first, int count);
  template <int Run>
  Floats entries(int row_entry) const;

  const Unit& unit_;
  const Plan& plan_;
  const BiasTable& table_;
  const float* values_ = nullptr;
  float* gradient_ = nullptr;

  int first_[kAxes] = {}, origin_ = 0, run_ = 1;
  int extent_[kAxes] = {}, row_step_[kAxes], cell_step_[kAxes];
  Ints begin_[kAxes], end_[kAxes];  // rows that each lane sees, from the first row of the tile
  int lane_entry_[kLanes];
  int shape_of_[kAxes] = {-1, -1, -1};
  int prepared_ = -1, prepared_count_ = 0, version_ = 0, pending_ = 0;

  int (*rows_)[kAxes];
  int *cells_, *row_entry_;
  Floats *bias_, *sum_;
};

}  // namespace natten
