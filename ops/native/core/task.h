// The work of a call: a list of tasks, each one unit of one sample and key/value head.
#pragma once

#include "bias.h"
#include "micro.h"
#include "pool.h"

namespace natten {

struct Task {
  int index;
  int batch, kv_head;
  const Plan* plan;
  const Unit* unit;
};

class Schedule {
 public:
  Schedule(const Problem& problem, const Arrays& arrays, Lanes lanes);

  int size() const { return first_.back(); }
  // Runs body(task) for all tasks on all threads.
  void run(const std::function<void(const Task&)>& body) const;
  // Tasks go by sample, then by region, so that heads which share cache lines follow each other.
  Task task(int index) const;

 private:
  std::vector<std::shared_ptr<const Plan>> plans_;  // per sample, or one for all
  std::vector<int> first_;                          // the first task of each sample
  int kv_heads_;
};

// The rows of a unit as float32: where they lie if that is what they are, else packed, as are those
// that are to be multiplied by a factor.
class Panel {
 public:
  Panel(Arena& arena, const Unit& unit, int channels)
      : arena_(arena), unit_(unit), channels_(channels),
        offsets_(arena.take<int64_t>(TileRows::kChunk)) {}

  void read(const View& view, int64_t head_offset, float factor = 1);
  Rows of(const TileRows& rows);

 private:
  void pack(const View& view, int64_t head_offset, float factor);

  Arena& arena_;
  const Unit& unit_;
  int channels_;
  const float* first_ = nullptr;  // the unit's first row
  int64_t step_[kAxes];           // from a row to the next one on each axis
  float* packed_ = nullptr;
  int64_t* offsets_;
  int version_ = -1;  // of the rows that these offsets belong to
};

// Room for the channels of one tile of lanes.
inline Floats* take_lanes(Arena& arena, int channels) {
  return arena.take<Floats>(padded(channels, kLanes));
}

inline void clear(Floats* lanes, int channels) {
  std::memset(lanes, 0, padded(channels, kLanes) * sizeof(Floats));
}

// Calls body(tile) for every tile of a unit; the last axis runs fastest.
template <class Body>
void for_each_tile(const Unit& unit, Body body) {
  for_each_point(unit.tiles, body);
}

// Entries of rpb that one head has.
inline int bias_entries(const Problem& p) {
  return (2 * p.axis[0].kernel - 1) * (2 * p.axis[1].kernel - 1) * (2 * p.axis[2].kernel - 1);
}

inline const float* rpb_of(const Problem& p, const float* rpb, int head) {
  return rpb + int64_t{1} * head * bias_entries(p);
}

// One number per lane, of a float32 array without channels.
inline Floats load_one(const View& view, int64_t head_offset, const TileLanes& lanes) {
  Floats out{};
  int64_t at[kLanes];
  lanes.offsets(view, head_offset, at);
  for (int l = 0; l < kLanes; ++l) {
    if (lanes.valid[l]) out[l] = number(view, at[l]);
  }
  return out;
}

inline void store_one(const View& view, int64_t head_offset, const TileLanes& lanes, Floats in) {
  int64_t at[kLanes];
  lanes.offsets(view, head_offset, at);
  for (int l = 0; l < kLanes; ++l) {
    if (lanes.valid[l]) number(view, at[l]) = in[l];
  }
}

// What the softmax of a row was: its largest score, and log2 of the sum of 2^(score - top).
struct Stats {
  Floats top{}, log_sum{};
};

inline Stats load_stats(const View& view, int64_t head_offset, const TileLanes& lanes) {
  Stats out;
  int64_t at[kLanes];
  lanes.offsets(view, head_offset, at);
  for (int l = 0; l < kLanes; ++l) {
    if (!lanes.valid[l]) continue;
    out.top[l] = number(view, at[l]);
    out.log_sum[l] = number(view, at[l] + view.channel_stride);
  }
  return out;
}

inline void store_stats(const View& view, int64_t head_offset, const TileLanes& lanes,
                        const Stats& in) {
  int64_t at[kLanes];
  lanes.offsets(view, head_offset, at);
  for (int l = 0; l < kLanes; ++l) {
    if (!lanes.valid[l]) continue;
    number(view, at[l]) = in.top[l];
    number(view, at[l] + view.channel_stride) = in.log_sum[l];
  }
}

// Fill an array by query or by key that, with lengths, no task writes as a whole.
void fill_queries(const View& view, const Problem& problem, int channels, float value);
void fill_keys(const View& view, const Problem& problem, int channels, float value);

}  // namespace natten
