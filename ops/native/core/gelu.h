// GELU by the error function, x Phi(x), and its gradient: point-wise, in vectors.
#pragma once

#include <cstdint>

#include "problem.h"

namespace natten {

// out = x Phi(x) of `count` numbers that lie side by side, all of one dtype; `out` may be `x`.
void gelu(DType dtype, const void* x, void* out, int64_t count);

// d_x = d_out (Phi(x) + x phi(x)); `d_x` may be one of the others.
void gelu_backward(DType dtype, const void* x, const void* d_out, void* d_x, int64_t count);

}  // namespace natten
