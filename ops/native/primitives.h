// The operations of core/ as MLX primitives.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "operations.h"

namespace natten {

// Adds an operation to the graph, on the CPU's stream; MLX differentiates and maps it by itself.
// `inputs` come in the order that attention.h names. With an rpb the backward operations have its
// gradient as their last output.
std::vector<mx::array> apply(Op op, const Call& call, std::vector<mx::array> inputs,
                             std::optional<mx::array> rpb, std::optional<mx::array> lengths);

}  // namespace natten
