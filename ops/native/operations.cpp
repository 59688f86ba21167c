#include "operations.h"

#include "core/attention.h"
#include "mlx/ops.h"
#include "view.h"

namespace natten {
namespace {

// Arrays by token that have no channels.
bool is_lse(Member member) { return member == &Arrays::lse || member == &Arrays::d_lse; }

bool is_packed(Member member) { return member == &Arrays::qkv || member == &Arrays::d_qkv; }

bool is_by_key(Member member) {
  using A = Arrays;
  return member == &A::key || member == &A::value || member == &A::d_key || member == &A::d_value;
}

bool has_value_dim(Member member) {
  using A = Arrays;
  return member == &A::value || member == &A::d_value || member == &A::out || member == &A::d_out;
}

int heads_of(Member member, const Problem& problem) {
  if (is_packed(member)) return problem.heads + 2 * problem.kv_heads;
  return is_by_key(member) ? problem.kv_heads : problem.heads / problem.places();
}

}  // namespace

Call make_call(const std::vector<int>& spatial, const std::vector<int>& kernel_size,
               const std::vector<int>& dilation, const std::vector<int>& stride,
               const std::vector<int>& window_stride, const std::vector<bool>& is_causal,
               const std::vector<int>& finer, int batch, int heads, int kv_heads, int head_dim,
               int value_dim, float scale) {
  Problem p{.batch = batch, .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim,
            .value_dim = value_dim, .scale = scale};
  const int rank = static_cast<int>(spatial.size());
  for (int i = 0; i < rank; ++i) {
    p.axis[kAxes - rank + i] = {spatial.at(i), kernel_size.at(i),   dilation.at(i),
                                stride.at(i),  window_stride.at(i), is_causal.at(i),
                                finer.empty() ? 1 : finer.at(i)};
  }
  return {p, rank};
}

const Signature& signature(Op op) {
  using A = Arrays;
  static const std::array<Signature, 8> all = {{
      {"NattenAttention", attention_forward, {&A::query, &A::key, &A::value}, {&A::out, &A::lse, &A::stats}},
      {"NattenAttentionBackward",
       attention_backward,
       {&A::query, &A::key, &A::value, &A::out, &A::stats, &A::d_out, &A::d_lse},
       {&A::d_query, &A::d_key, &A::d_value}},
      {"NattenQK", qk_forward, {&A::query, &A::key}, {&A::attn}},
      {"NattenQKBackward",
       qk_backward,
       {&A::query, &A::key, &A::d_attn},
       {&A::d_query, &A::d_key}},
      {"NattenAV", av_forward, {&A::attn, &A::value}, {&A::out}},
      {"NattenAVBackward",
       av_backward,
       {&A::attn, &A::value, &A::d_out},
       {&A::d_attn, &A::d_value}},
      {"NattenAttentionPacked", attention_forward, {&A::qkv}, {&A::out, &A::lse, &A::stats}},
      {"NattenAttentionBackwardPacked",
       attention_backward,
       {&A::query, &A::key, &A::value, &A::out, &A::stats, &A::d_out, &A::d_lse},
       {&A::d_qkv}},
  }};
  return all[static_cast<int>(op)];
}

Op gradient_of(Op op) {
  switch (op) {
    case Op::kAttention: return Op::kAttentionBackward;
    case Op::kAttentionPacked: return Op::kAttentionBackwardPacked;
    case Op::kQk: return Op::kQkBackward;
    case Op::kAv: return Op::kAvBackward;
    default:
      throw NotImplemented("[neighborhood attention] gradients of gradients are not supported.");
  }
}

bool sums_bias_gradient(Op op) {
  return op == Op::kAttentionBackward || op == Op::kAttentionBackwardPacked ||
         op == Op::kQkBackward;
}

bool is_float32(Member member) { return is_lse(member) || member == &Arrays::stats; }

mx::Shape shape_of(Member member, const Call& call) {
  const Problem& p = call.problem;
  const bool whole = is_by_key(member) || is_packed(member);
  mx::Shape shape{p.batch};
  for (int a = kAxes - call.rank; a < kAxes; ++a) {
    shape.push_back(whole ? p.axis[a].length : p.axis[a].queries() * p.axis[a].finer);
  }
  shape.push_back(heads_of(member, p));
  if (member == &Arrays::attn || member == &Arrays::d_attn) {
    shape.push_back(p.slots());
  } else if (member == &Arrays::stats) {
    shape.push_back(2);
  } else if (!is_lse(member)) {
    shape.push_back(has_value_dim(member) ? p.value_dim : p.head_dim);
  }
  return shape;
}

mx::Shape bias_shape(const Call& call) {
  mx::Shape shape{call.problem.heads};
  for (int a = kAxes - call.rank; a < kAxes; ++a) {
    shape.push_back(2 * call.problem.axis[a].kernel - 1);
  }
  return shape;
}

View view_of(mx::array& x, Member member, const Call& call) {
  View view{.data = x.data<char>(), .dtype = dtype_of(x)};
  const auto& strides = x.strides();
  const int rank = call.rank;
  view.batch_stride = strides[0];
  for (int i = 0; i < rank; ++i) view.axis_stride[kAxes - rank + i] = strides[1 + i];
  view.head_stride = strides[rank + 1];
  if (static_cast<int>(x.ndim()) > rank + 2) view.channel_stride = strides[rank + 2];
  return is_by_key(member) || is_packed(member) ? view : view.by_cells(call.problem);
}

std::array<View, 3> parts_of(const View& packed, const Problem& problem) {
  const auto from = [&packed](int head) {
    View part = packed;
    const int64_t bytes = packed.dtype == DType::kFloat32 ? 4 : 2;
    part.data = static_cast<char*>(packed.data) + head * packed.head_stride * bytes;
    return part;
  };
  View query = packed;
  for (int a = 0; a < kAxes; ++a) query.axis_stride[a] *= problem.axis[a].stride;
  return {query, from(problem.heads), from(problem.heads + problem.kv_heads)};
}

std::vector<mx::array> parts_of(const mx::array& packed, const Call& call, mx::Stream stream) {
  const Problem& p = call.problem;
  const int heads_axis = call.rank + 1;
  const auto part = [&](int first, int last, bool kept) {
    mx::Shape start(packed.ndim(), 0), stop = packed.shape(), steps(packed.ndim(), 1);
    start[heads_axis] = first;
    stop[heads_axis] = last;
    for (int i = 0; kept && i < call.rank; ++i) steps[1 + i] = p.axis[kAxes - call.rank + i].stride;
    return mx::slice(packed, start, stop, steps, stream);
  };
  const int keys = p.heads, values = p.heads + p.kv_heads;
  return {part(0, keys, true), part(keys, values, false), part(values, values + p.kv_heads, false)};
}

}  // namespace natten
