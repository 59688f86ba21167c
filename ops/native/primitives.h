// The operations of core/ as MLX primitives.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/problem.h"
#include "mlx/array.h"

namespace natten {

namespace mx = mlx::core;

// Python's NotImplementedError.
struct NotImplemented : std::logic_error {
  using std::logic_error::logic_error;
};

enum class Op {
  kAttention, kAttentionBackward, kQk, kQkBackward, kAv, kAvBackward, kAttentionBackwardPacked
};

// A problem as Python knows it: without the padding to three axes.
struct Call {
  Problem problem;
  int rank;
};

Call make_call(const std::vector<int>& spatial, const std::vector<int>& kernel_size,
               const std::vector<int>& dilation, const std::vector<int>& stride,
               const std::vector<int>& window_stride, const std::vector<bool>& is_causal, int batch,
               int heads, int kv_heads, int head_dim, int value_dim, float scale);

// Adds an operation to the graph, on the CPU's stream; MLX differentiates and maps it by itself.
// `inputs` come in the order that attention.h names. With an rpb the backward operations have its
// gradient as their last output.
std::vector<mx::array> apply(Op op, const Call& call, std::vector<mx::array> inputs,
                             std::optional<mx::array> rpb, std::optional<mx::array> lengths);

}  // namespace natten
