// What each operation of core/ reads and writes, and of which shapes.
#pragma once

#include <array>
#include <stdexcept>
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
  kAttention, kAttentionBackward, kQk, kQkBackward, kAv, kAvBackward,
  kAttentionPacked, kAttentionBackwardPacked
};

// A problem as Python knows it: without the padding to three axes.
struct Call {
  Problem problem;
  int rank;
};

Call make_call(const std::vector<int>& spatial, const std::vector<int>& kernel_size,
               const std::vector<int>& dilation, const std::vector<int>& stride,
               const std::vector<int>& window_stride, const std::vector<bool>& is_causal,
               const std::vector<int>& finer, int batch, int heads, int kv_heads, int head_dim,
               int value_dim, float scale);

using Member = View Arrays::*;

struct Signature {
  const char* name;
  void (*run)(const Problem&, const Arrays&);
  std::vector<Member> inputs, outputs;
};

const Signature& signature(Op op);

// The operation that has the gradients of another. Throws where there is none.
Op gradient_of(Op op);

// Whether an operation's last output is the gradient of rpb, where it has an rpb.
bool sums_bias_gradient(Op op);

// What is float32 whatever the others are.
bool is_float32(Member member);

mx::Shape shape_of(Member member, const Call& call);
mx::Shape bias_shape(const Call& call);

View view_of(mx::array& x, Member member, const Call& call);

// Queries, keys and values of one array, as views of it: the queries that `stride` keeps.
std::array<View, 3> parts_of(const View& packed, const Problem& problem);
std::vector<mx::array> parts_of(const mx::array& packed, const Call& call, mx::Stream stream);

}  // namespace natten
