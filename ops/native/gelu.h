// GELU as an MLX primitive on the CPU.
#pragma once

#include "mlx/array.h"

namespace natten {

// x Phi(x), by the error function. Differentiable as often as one likes, in both modes.
mlx::core::array gelu(const mlx::core::array& x);

}  // namespace natten
