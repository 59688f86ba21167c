// Moves numbers between arrays of any dtype and stride and the float32 memory of a thread.
#pragma once

#include <memory>
#include <vector>

#include "plan.h"

namespace natten {

constexpr int padded(int channels, int multiple) {
  return (channels + multiple - 1) / multiple * multiple;
}

// Scratch memory of one thread. It grows to what the largest unit needs and is then reused.
class Arena {
 public:
  static Arena& of_thread();

  void reset();
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  void* take_bytes(size_t bytes);

  std::vector<std::unique_ptr<void, Free>> blocks_;
  size_t size_ = 0, used_ = 0, needed_ = 0;
};

// A row of numbers; `out` has room for a multiple of kLanes, with zeros behind the last channel.
void read_row(const View& view, int64_t offset, int channels, float* out);
void write_row(const View& view, int64_t offset, int channels, const float* in);
void fill_row(const View& view, int64_t offset, int channels, float value);

// The rows of a unit times a factor, packed one after the other: [cells, pitch].
void pack_rows(const View& view, int64_t head_offset, const Unit& unit, int channels, float factor,
               int pitch, float* out);

// One number of a float32 array.
inline float& number(const View& view, int64_t offset) {
  return static_cast<float*>(view.data)[offset];
}

// Calls body(cell, offset) for every row of a unit.
template <class Body>
void for_each_row(const View& view, const Unit& unit, int64_t offset, Body body) {
  int cell = 0;
  const auto step = [&](int a, int row) { return unit.axis[a]->row_at(row) * view.axis_stride[a]; };
  for (int z = unit.rows[0].begin; z < unit.rows[0].end; ++z) {
    for (int y = unit.rows[1].begin; y < unit.rows[1].end; ++y) {
      const int64_t line = offset + step(0, z) + step(1, y);
      for (int x = unit.rows[2].begin; x < unit.rows[2].end; ++x) body(cell++, line + step(2, x));
    }
  }
}

// The lanes of one tile: where they lie, and which of them exist.
struct TileLanes {
  bool valid[kLanes];

  TileLanes(const Unit& unit, const Plan& plan, const int* tile);
  // Where each lane's numbers lie in an array; those of lanes that do not exist may lie outside.
  void offsets(const View& view, int64_t head_offset, int64_t* out) const;

 private:
  const Plan& plan_;
  int first_[kAxes], step_[kAxes];  // coordinates in the arrays
};

// out[channel] = the lanes' numbers of one channel, times scale; 0 for lanes that do not exist.
void load_lanes(const View& view, int64_t head_offset, const TileLanes& lanes, int channels,
                float scale, Floats* out);
void store_lanes(const View& view, int64_t head_offset, const TileLanes& lanes, int channels,
                 Floats scale, const Floats* in);

}  // namespace natten
