// What core/ knows of an MLX array.
#pragma once

#include <stdexcept>

#include "core/problem.h"
#include "mlx/array.h"

namespace natten {

inline DType dtype_of(const mlx::core::array& x) {
  namespace mx = mlx::core;
  if (x.dtype() == mx::float32) return DType::kFloat32;
  if (x.dtype() == mx::float16) return DType::kFloat16;
  if (x.dtype() == mx::bfloat16) return DType::kBFloat16;
  throw std::invalid_argument("[natten_zoo] arrays must be float32, float16 or bfloat16.");
}

}  // namespace natten
