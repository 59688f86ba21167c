#include "task.h"

#include <algorithm>

namespace natten {
namespace {

void fill(const View& view, int batch, const int* size, int heads, int channels, float value) {
  parallel_for(batch * size[0], [&](int i) {
    const int b = i / size[0], z = i % size[0];
    for (int y = 0; y < size[1]; ++y) {
      for (int x = 0; x < size[2]; ++x) {
        const int64_t at =
            z * view.axis_stride[0] + y * view.axis_stride[1] + x * view.axis_stride[2];
        for (int h = 0; h < heads; ++h) fill_row(view, view.at(b, h) + at, channels, value);
      }
    }
  });
}

}  // namespace

Schedule::Schedule(const Problem& problem, const Arrays& arrays, Lanes lanes)
    : first_{0}, kv_heads_(problem.kv_heads) {
  if (arrays.lengths == nullptr) plans_.push_back(Plan::of(problem, lanes));
  for (int b = 0; b < problem.batch; ++b) {
    if (arrays.lengths != nullptr) {
      Problem sample = problem;
      for (int i = 0; i < arrays.rank; ++i) {
        AxisSpec& axis = sample.axis[kAxes - arrays.rank + i];
        axis.length = std::clamp(arrays.lengths[b * arrays.rank + i], 0, axis.length);
      }
      plans_.push_back(Plan::of(sample, lanes));
    }
    first_.push_back(first_.back() + plans_.back()->units() * kv_heads_);
  }
}

Task Schedule::task(int index) const {
  const auto next = std::upper_bound(first_.begin(), first_.end(), index);
  const int batch = static_cast<int>(next - first_.begin()) - 1;
  const Plan* plan = plans_[plans_.size() == 1 ? 0 : batch].get();
  const int local = index - first_[batch];
  return {index, batch, local % kv_heads_, plan, &plan->unit(local / kv_heads_)};
}

void Schedule::run(const std::function<void(const Task&)>& body) const {
  parallel_for(size(), [&](int i) {
    Arena::of_thread().reset();
    body(task(i));
  });
}

void Panel::read(const View& view, int64_t head_offset, float factor) {
  version_ = -1;
  // The loops over rows read them eight floats at a time.
  const bool in_place = view.dtype == DType::kFloat32 && view.channel_stride == 1 && factor == 1;
  if (!in_place || channels_ % 8 != 0) return pack(view, head_offset, factor);
  for (int a = 0; a < kAxes; ++a) {
    head_offset += unit_.axis[a]->row_at(unit_.rows[a].begin) * view.axis_stride[a];
    step_[a] = unit_.axis[a]->row_at.step * view.axis_stride[a];
  }
  first_ = static_cast<const float*>(view.data) + head_offset;
}

void Panel::pack(const View& view, int64_t head_offset, float factor) {
  const int64_t pitch = padded(channels_, kLanes);
  if (packed_ == nullptr) packed_ = arena_.take<float>(unit_.cells() * pitch);
  pack_rows(view, head_offset, unit_, channels_, factor, pitch, packed_);
  first_ = packed_;
  int64_t step = pitch;
  for (int a = kAxes - 1; a >= 0; --a) {
    step_[a] = step;
    step *= unit_.extent(a);
  }
}

Rows Panel::of(const TileRows& rows) {
  if (version_ != rows.version()) {
    version_ = rows.version();
    for (int j = 0; j < rows.prepared(); ++j) {
      const int* row = rows.row(j);
      offsets_[j] = row[0] * step_[0] + row[1] * step_[1] + row[2] * step_[2];
    }
  }
  const int64_t first =
      rows.first(0) * step_[0] + rows.first(1) * step_[1] + rows.first(2) * step_[2];
  return {first_ + first, offsets_};
}

void fill_queries(const View& view, const Problem& problem, int channels, float value) {
  const AxisSpec* axis = problem.axis;
  const int size[kAxes] = {axis[0].queries(), axis[1].queries(), axis[2].queries()};
  fill(view, problem.batch, size, problem.heads, channels, value);
}

void fill_keys(const View& view, const Problem& problem, int channels, float value) {
  const int size[kAxes] = {problem.axis[0].length, problem.axis[1].length, problem.axis[2].length};
  fill(view, problem.batch, size, problem.kv_heads, channels, value);
}

}  // namespace natten
