#include "bias.h"

#include <algorithm>

namespace natten {

BiasTable::BiasTable(const Problem& problem, const Plan& plan, Lanes lanes)
    : reversed_(lanes == Lanes::kQueries) {
  size_ = 1;
  for (int a = kAxes - 1; a >= 0; --a) {
    kernel_[a] = problem.axis[a].kernel;
    reach_[a] = std::max(plan.reach(a), kernel_[a] - 1);
    stride_[a] = size_;
    size_ *= 2 * reach_[a] + 1;
  }
}

// Calls body(entry of the table, index in rpb).
template <class Body>
void BiasTable::for_each_entry(Body body) const {
  Range box[kAxes];
  for (int a = 0; a < kAxes; ++a) box[a] = {0, 2 * kernel_[a] - 1};
  int index = 0;
  for_each_point(box, [&](const int* at) {
    int entry = 0;
    for (int a = 0; a < kAxes; ++a) {
      const int distance = at[a] - (kernel_[a] - 1);
      entry += (reach_[a] + (reversed_ ? -distance : distance)) * stride_[a];
    }
    body(entry, index++);
  });
}

void BiasTable::read(const float* rpb, float factor, float least, float* table) const {
  std::fill(table, table + size_, 0.0f);
  for_each_entry([&](int entry, int index) {
    const float bias = factor * rpb[index];
    table[entry] = bias < least ? least : bias;  // a NaN stays one
  });
}

void BiasTable::add_to(const float* table, float* d_rpb) const {
  for_each_entry([&](int entry, int index) { d_rpb[index] += table[entry]; });
}

TileRows::TileRows(const Unit& unit, const Plan& plan, const BiasTable& table, Arena& arena)
    : unit_(unit), plan_(plan), table_(table) {
  int cells = 1;
  for (int a = kAxes - 1; a >= 0; --a) {
    row_step_[a] = unit.axis[a]->row_ordinal.step * table.stride(a);
    cell_step_[a] = cells;
    cells *= unit.extent(a);
  }
  // Lanes that follow each other on the last axis find their biases side by side.
  if (unit.axis[kAxes - 1]->lane_ordinal.step == 1) run_ = plan.tile(kAxes - 1);
  rows_ = arena.take<int[kAxes]>(kChunk);
  cells_ = arena.take<int>(kChunk);
  row_entry_ = arena.take<int>(kChunk);
  bias_ = arena.take<Floats>(kChunk);
  sum_ = arena.take<Floats>(kChunk);
}

void TileRows::use_head(const float* bias, float* gradient) {
  flush();
  values_ = bias;
  gradient_ = gradient;
  prepared_ = -1;
}

void TileRows::enter(const int* tile) {
  origin_ = 0;
  bool same = true;
  for (int a = 0; a < kAxes; ++a) {
    const AxisPlan& axis = *unit_.axis[a];
    const Range rows = axis.tile_sees[tile[a]];
    first_[a] = rows.begin - unit_.rows[a].begin;
    origin_ += first_[a] * cell_step_[a];
    same &= axis.shape[tile[a]] == shape_of_[a];
  }
  if (same) return;
  flush();
  prepared_ = -1;
  std::fill(lane_entry_, lane_entry_ + kLanes, 0);
  for (int a = 0; a < kAxes; ++a) enter_axis(a, tile[a]);
}

void TileRows::enter_axis(int a, int tile) {
  const AxisPlan& axis = *unit_.axis[a];
  const Range rows = axis.tile_sees[tile];
  shape_of_[a] = axis.shape[tile];
  extent_[a] = rows.size();
  Range seen[kLanes];
  int entry[kLanes];
  for (int i = 0; i < axis.tile; ++i) {
    seen[i] = axis.lane_sees(tile, i);
    const int distance = axis.lane_ordinal(tile * axis.tile + i) - axis.row_ordinal(rows.begin);
    entry[i] = (distance + table_.center(a)) * table_.stride(a);
  }
  for (int l = 0; l < kLanes; ++l) {
    const int i = plan_.lane(a)[l];
    begin_[a][l] = seen[i].begin - rows.begin;
    end_[a][l] = seen[i].end - rows.begin;
    lane_entry_[l] += entry[i];
  }
}

int TileRows::prepare(int first) {
  const int n = std::min(kChunk, count() - first);
  if (first == prepared_) return n;
  flush();
  prepared_ = first;
  prepared_count_ = n;
  ++version_;
  if (values_ == nullptr) {
    fill<0>(first, n);
  } else if (run_ == 16) {
    fill<std::min(16, kLanes)>(first, n);
  } else if (run_ == 8) {
    fill<8>(first, n);
  } else if (run_ == 4) {
    fill<4>(first, n);
  } else {
    fill<1>(first, n);
  }
  return n;
}

template <int Run>
Floats TileRows::entries(int row_entry) const {
  if constexpr (Run == 0) return Floats{};
  float out[kLanes];
  for (int l = 0; l < kLanes; l += std::max(Run, 1)) {
    std::memcpy(out + l, values_ + lane_entry_[l] - row_entry, Run * sizeof(float));
  }
  return load(out);
}

template <int Run>
void TileRows::fill(int first, int count) {
  const auto seen = [&](int a, int row) { return (begin_[a] <= row) & (row < end_[a]); };
  int x = first % extent_[2], y = first / extent_[2] % extent_[1],
      z = first / extent_[2] / extent_[1];
  for (int j = 0; j < count;) {
    const Ints line = seen(0, z) & seen(1, y);
    const int line_entry = z * row_step_[0] + y * row_step_[1];
    const int line_cell = z * cell_step_[0] + y * cell_step_[1];
    for (; x < extent_[2] && j < count; ++x, ++j) {
      rows_[j][0] = z;
      rows_[j][1] = y;
      rows_[j][2] = x;
      cells_[j] = line_cell + x;
      row_entry_[j] = line_entry + x * row_step_[2];
      const Ints visible = line & seen(2, x);
      bias_[j] = visible ? entries<Run>(row_entry_[j]) : splat(kMasked);
    }
    x = 0;
    if (++y == extent_[1]) {
      y = 0;
      ++z;
    }
  }
}

void TileRows::add_gradient(const Floats* d_scores, int count) {
  if (gradient_ == nullptr) return;
  if (pending_ == 0) std::fill(sum_, sum_ + count, Floats{});
  pending_ = count;
  for (int j = 0; j < count; ++j) sum_[j] += d_scores[j];
}

// Tiles of one shape sum their gradients by row and lane; only the sums go to the table.
void TileRows::flush() {
  for (int j = 0; j < pending_; ++j) {
    for (int l = 0; l < kLanes; ++l) gradient_[lane_entry_[l] - row_entry_[j]] += sum_[j][l];
  }
  pending_ = 0;
}

}  // namespace natten
