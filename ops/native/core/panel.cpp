#include "panel.h"

#include <algorithm>
#include <new>

#include "convert.h"

namespace natten {
namespace {

constexpr size_t kAlignment = 64;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kLeast = 0;  // every array for itself, so that it is seen who leaves his own
#else
constexpr size_t kLeast = 64 * 1024;
#endif

template <class Element>
void read(const typename Element::Raw* in, int64_t stride, int channels, float factor, float* out) {
  for_each_block(channels, [&](int c, int n) {
    store(out + c, load_some<Element>(in + c * stride, stride, n) * factor);
  });
}

}  // namespace

Arena& Arena::of_thread() {
  static thread_local Arena arena;
  return arena;
}

void Arena::Free::operator()(void* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }

void Arena::reset() {
  if (blocks_.size() > 1 || kLeast == 0) {
    blocks_.clear();
    size_ = 0;
    used_ = 0;
    if (kLeast > 0) take_bytes(needed_);
  }
  used_ = needed_ = 0;
}

void* Arena::take_bytes(size_t bytes) {
  if (kLeast > 0) bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  needed_ += bytes;
  if (blocks_.empty() || used_ + bytes > size_) {
    size_ = std::max(bytes, kLeast);
    used_ = 0;
    blocks_.emplace_back(::operator new(size_, std::align_val_t{kAlignment}));
  }
  void* p = static_cast<char*>(blocks_.back().get()) + used_;
  used_ += bytes;
  return p;
}

void read_row(const View& view, int64_t offset, int channels, float* out) {
  with_type(view, [&](auto element, const auto* data) {
    read<decltype(element)>(data + offset, view.channel_stride, channels, 1, out);
  });
}

void write_row(const View& view, int64_t offset, int channels, const float* in) {
  with_type(view, [&](auto element, auto* data) {
    for_each_block(channels, [&](int c, int n) {
      store_some<decltype(element)>(data + offset + c, n, load(in + c));
    });
  });
}

void fill_row(const View& view, int64_t offset, int channels, float value) {
  with_type(view, [&](auto element, auto* data) {
    for_each_block(channels, [&](int c, int n) {
      store_some<decltype(element)>(data + offset + c, n, splat(value));
    });
  });
}

void pack_rows(const View& view, int64_t head_offset, const Unit& unit, int channels, float factor,
               int pitch, float* out) {
  const int64_t ahead = 8 * unit.axis[kAxes - 1]->row_at.step * view.axis_stride[kAxes - 1];
  with_type(view, [&](auto element, const auto* data) {
    for_each_row(view, unit, head_offset, [&](int cell, int64_t offset) {
      float* row = out + int64_t{1} * cell * pitch;
      __builtin_prefetch(data + offset + ahead);
      read<decltype(element)>(data + offset, view.channel_stride, channels, factor, row);
    });
  });
}

TileLanes::TileLanes(const Unit& unit, const Plan& plan, const int* tile) : plan_(plan) {
  std::fill(valid, valid + kLanes, true);
  for (int a = 0; a < kAxes; ++a) {
    const AxisPlan& axis = *unit.axis[a];
    const int first = tile[a] * plan.tile(a), count = axis.lanes() - first;
    first_[a] = axis.lane_at(first);
    step_[a] = axis.lane_at.step;
    if (count >= plan.tile(a)) continue;
    for (int l = 0; l < kLanes; ++l) valid[l] &= plan.lane(a)[l] < count;
  }
}

void TileLanes::offsets(const View& view, int64_t head_offset, int64_t* out) const {
  int64_t step[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    head_offset += first_[a] * view.axis_stride[a];
    step[a] = step_[a] * view.axis_stride[a];
  }
  for (int l = 0; l < kLanes; ++l) {
    out[l] = head_offset + plan_.lane(0)[l] * step[0] + plan_.lane(1)[l] * step[1] +
             plan_.lane(2)[l] * step[2];
  }
}

void load_lanes(const View& view, int64_t head_offset, const TileLanes& lanes, int channels,
                float scale, Floats* out) {
  int64_t offsets[kLanes];
  lanes.offsets(view, head_offset, offsets);
  with_type(view, [&](auto element, const auto* data) {
    for_each_block(channels, [&](int c, int n) {
      Floats square[kLanes] = {};
      for (int l = 0; l < kLanes; ++l) {
        if (!lanes.valid[l]) continue;
        const int64_t stride = view.channel_stride;
        square[l] = load_some<decltype(element)>(data + offsets[l] + c * stride, stride, n);
      }
      transpose(square);
      for (int i = 0; i < kLanes; ++i) out[c + i] = square[i] * scale;
    });
  });
}

void store_lanes(const View& view, int64_t head_offset, const TileLanes& lanes, int channels,
                 Floats scale, const Floats* in) {
  int64_t offsets[kLanes];
  lanes.offsets(view, head_offset, offsets);
  with_type(view, [&](auto element, auto* data) {
    for_each_block(channels, [&](int c, int n) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = in[c + i] * scale;
      transpose(square);
      for (int l = 0; l < kLanes; ++l) {
        if (lanes.valid[l]) store_some<decltype(element)>(data + offsets[l] + c, n, square[l]);
      }
    });
  });
}

}  // namespace natten
