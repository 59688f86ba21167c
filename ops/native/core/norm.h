// Layer norm and its gradient, a row at a time, in vectors.
#pragma once

#include <cstdint>

#include "problem.h"

namespace natten {

// Rows of channels that lie side by side; all arrays are of one dtype, sums are in float32.
struct NormRows {
  DType dtype;
  int64_t rows;
  int channels;
  float eps;
};

// out = (x - mean) / sqrt(variance + eps) weight + bias of each row; `out` may be `x`.
void layer_norm(const NormRows& shape, const void* x, const void* weight, const void* bias,
                void* out);

// The gradients of all three; `d_x` may be `x` or `d_out`. Sums over rows come in one order,
// whatever the number of threads.
void layer_norm_backward(const NormRows& shape, const void* x, const void* weight,
                         const void* d_out, void* d_x, void* d_weight, void* d_bias);

}  // namespace natten
