// What one call computes and where its arrays lie; free of MLX.
#pragma once

#include <compare>
#include <cstdint>

namespace natten {

// z, y, x, as in metal/. The axes that a problem lacks are the first ones, of length 1.
constexpr int kAxes = 3;

struct AxisSpec {
  int length = 1;
  int kernel = 1;
  int dilation = 1;
  int stride = 1;         // query o of the arrays is token o * stride
  int window_stride = 1;  // queries that share a window
  bool causal = false;
  int finer = 1;  // than its own the queries' map is: a head then has one query of each cell

  auto operator<=>(const AxisSpec&) const = default;
  int queries() const { return (length + stride - 1) / stride; }
};

struct Problem {
  AxisSpec axis[kAxes];
  int batch = 1;
  int heads = 1;
  int kv_heads = 1;
  int head_dim = 1;
  int value_dim = 1;
  float scale = 1;

  auto operator<=>(const Problem&) const = default;
  int sharing() const { return heads / kv_heads; }  // query heads that share a key head
  int slots() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  int places() const { return axis[0].finer * axis[1].finer * axis[2].finer; }  // of a cell
};

enum class DType { kFloat32, kFloat16, kBFloat16 };

// A heads-last array [batch, axis 0, axis 1, axis 2, heads, channels]; strides count elements.
// Heads that are places in a cell of a finer map, too, begin there, and their rows lie cells apart.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t batch_stride = 0;
  int64_t axis_stride[kAxes] = {};
  int64_t head_stride = 0;
  int64_t channel_stride = 1;
  int finer[kAxes] = {};  // if it is
  bool is_finer = false;

  // The same array on a finer map, seen as one on the map of its cells.
  View by_cells(const Problem& problem) const {
    View view = *this;
    for (int a = 0; a < kAxes; ++a) {
      view.finer[a] = problem.axis[a].finer;
      view.axis_stride[a] *= view.finer[a];
      view.is_finer |= view.finer[a] > 1;
    }
    return view;
  }

  int64_t at(int batch, int head) const {
    int64_t place = 0;
    if (is_finer) {
      for (int a = kAxes - 1; a >= 0; --a) {
        place += head % finer[a] * (axis_stride[a] / finer[a]);
        head /= finer[a];
      }
    }
    return batch * batch_stride + place + head * head_stride;
  }
  explicit operator bool() const { return data != nullptr; }
};

// The arrays of a call; which of them are set depends on the operation.
struct Arrays {
  View query, key, value, out, lse, attn;          // attn: [..., heads, slots]
  View stats;  // [..., heads, 2]: of a row the largest score (base 2), and log2 of the sum from there
  View d_query, d_key, d_value, d_out, d_lse, d_attn;
  View qkv, d_qkv;  // the first three in one array: heads of queries, of keys, of values
  const float* rpb = nullptr;     // [heads, 2K - 1 per axis]
  float* d_rpb = nullptr;
  const int32_t* lengths = nullptr;  // [batch, rank]
  int rank = kAxes;
};

}  // namespace natten
