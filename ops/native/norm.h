// Layer norm as an MLX primitive on the CPU.
#pragma once

#include "mlx/array.h"

namespace natten {

// The last axis of x normed, times weight, plus bias, all of one dtype. Differentiable as often as
// one likes, in both modes.
mlx::core::array layer_norm(const mlx::core::array& x, const mlx::core::array& weight,
                            const mlx::core::array& bias, float eps);

}  // namespace natten
