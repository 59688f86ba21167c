#include "primitives.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "core/pool.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/stream.h"
#include "mlx/utils.h"

namespace natten {
namespace {

class NeighborhoodOp : public mx::Primitive {
 public:
  NeighborhoodOp(mx::Stream stream, Op op, const Call& call, bool rpb, bool lengths)
      : mx::Primitive(stream), op_(op), call_(call), rpb_(rpb), lengths_(lengths) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    expect_work();  // MLX, too, has a thread to wake up before it comes to this operation
    const Signature& one = signature(op_);
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Arrays arrays;
    arrays.rank = call_.rank;
    size_t i = 0;
    for (Member member : one.inputs) arrays.*member = input(inputs[i++], member, encoder);
    if (rpb_) arrays.rpb = plain_input<float>(inputs[i++], encoder);
    if (lengths_) arrays.lengths = plain_input<int32_t>(inputs[i++], encoder);
    i = 0;
    for (auto& out : outputs) {
      out.set_data(mx::allocator::malloc(out.nbytes()));
      encoder.set_output_array(out);
    }
    for (Member member : one.outputs) arrays.*member = view_of(outputs[i++], member, call_);
    unpack(arrays);
    if (i < outputs.size()) arrays.d_rpb = outputs[i].data<float>();
    if (call_.problem.batch == 0) return clear_bias_gradient(outputs, i);
    const size_t left_out = leaves_out_queries() && arrays.d_qkv ? outputs[0].nbytes() : 0;
    encoder.dispatch([run = one.run, problem = call_.problem, arrays, left_out] {
      if (left_out) std::memset(arrays.d_qkv.data, 0, left_out);  // no gradient of those
      run(problem, arrays);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("[natten_zoo] the compiled tier runs on the CPU.");
  }

  const char* name() const override { return signature(op_).name; }

  std::vector<mx::array> jvp(const std::vector<mx::array>&, const std::vector<mx::array>&,
                             const std::vector<int>&) override {
    throw NotImplemented(
        "[neighborhood attention] forward-mode derivatives (mx.jvp) are not supported; use mx.grad "
        "or mx.vjp.");
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override {
    const auto options = primals.begin() + signature(op_).inputs.size();  // rpb and lengths
    std::vector<mx::array> inputs(primals.begin(), options);
    if (op_ == Op::kAttentionPacked) inputs = parts_of(primals[0], call_, stream());
    const Op gradient = gradient_of(op_);
    size_t cotangents_used = cotangents.size();
    if (op_ == Op::kAttention || op_ == Op::kAttentionPacked) {  // of out and lse; stats are between us
      inputs.insert(inputs.end(), {outputs[0], outputs[2]});
      cotangents_used = 2;
    }
    for (size_t i = 0; i < cotangents_used; ++i) {  // a rule of the user's may give other dtypes
      inputs.push_back(mx::astype(cotangents[i], outputs[i].dtype(), stream()));
    }
    inputs.insert(inputs.end(), options, primals.end());
    const auto grads = NeighborhoodOp(stream(), gradient, call_, rpb_, lengths_)
                           .add_to_graph(std::move(inputs));
    std::vector<mx::array> wanted;
    for (int i : argnums) {
      const bool of_lengths = i >= static_cast<int>(grads.size());
      wanted.push_back(of_lengths ? mx::zeros_like(primals[i], stream()) : grads[i]);
    }
    return wanted;
  }

  // The mapped axis becomes part of the batch. The gradient of rpb sums over the batch, which must
  // not mix mapped entries, and each entry has a bias of its own if that is mapped: then a call each.
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs, const std::vector<int>& axes) override {
    size_t mapped = 0;
    while (axes[mapped] < 0) ++mapped;
    const int n = inputs[mapped].shape(axes[mapped]);
    const size_t rpb_at = signature(op_).inputs.size();
    const bool apart = rpb_ && (axes[rpb_at] >= 0 || has_bias_gradient());
    const auto outputs = apart ? one_by_one(inputs, axes, n) : folded(inputs, axes, n);
    return {outputs, std::vector<int>(outputs.size(), 0)};
  }

  std::vector<mx::array> add_to_graph(std::vector<mx::array> inputs) {
    auto primitive = std::make_shared<NeighborhoodOp>(stream(), op_, call_, rpb_, lengths_);
    const Signature& one = signature(op_);
    for (size_t i = one.inputs.size(); i < inputs.size(); ++i) {  // what eval_cpu reads as it lies
      inputs[i] = mx::contiguous(inputs[i], false, stream());
    }
    auto shapes = primitive->output_shapes(inputs);
    std::vector<mx::Dtype> dtypes(shapes.size(), inputs[0].dtype());
    for (size_t i = 0; i < dtypes.size(); ++i) {
      if (i >= one.outputs.size() || is_float32(one.outputs[i])) dtypes[i] = mx::float32;
    }
    return mx::array::make_arrays(std::move(shapes), dtypes, primitive, std::move(inputs));
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const NeighborhoodOp&>(other);
    return op_ == o.op_ && call_.problem == o.call_.problem && call_.rank == o.call_.rank &&
           rpb_ == o.rpb_ && lengths_ == o.lengths_;
  }

  // Also where a function compiled with shapeless=True meets inputs of other shapes.
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    check_shapes(inputs);
    std::vector<mx::Shape> shapes;
    for (Member member : signature(op_).outputs) shapes.push_back(shape_of(member, call_));
    if (has_bias_gradient()) shapes.push_back(bias_shape(call_));
    return shapes;
  }

 private:
  bool has_bias_gradient() const { return rpb_ && sums_bias_gradient(op_); }

  bool leaves_out_queries() const {
    const auto& axes = call_.problem.axis;
    return std::any_of(axes, axes + kAxes, [](const AxisSpec& axis) { return axis.stride > 1; });
  }

  // Has the parts of a packed array read and written where they lie.
  void unpack(Arrays& arrays) const {
    if (arrays.qkv) {
      const auto [query, key, value] = parts_of(arrays.qkv, call_.problem);
      arrays.query = query, arrays.key = key, arrays.value = value;
    }
    if (arrays.d_qkv) {
      const auto [query, key, value] = parts_of(arrays.d_qkv, call_.problem);
      arrays.d_query = query, arrays.d_key = key, arrays.d_value = value;
    }
  }

  void check_shapes(const std::vector<mx::array>& inputs) const {
    const Signature& one = signature(op_);
    size_t i = 0;
    for (Member member : one.inputs) check_shape(inputs[i++], shape_of(member, call_));
    if (rpb_) check_shape(inputs[i++], bias_shape(call_));
    if (lengths_) check_shape(inputs[i++], {call_.problem.batch, call_.rank});
  }

  void check_shape(const mx::array& x, const mx::Shape& shape) const {
    if (x.shape() == shape) return;
    std::ostringstream text;
    text << "[" << name() << "] an array of shape " << x.shape()
         << " does not fit the problem, which needs " << shape << ".";
    throw std::invalid_argument(text.str());
  }

  std::vector<mx::array> folded(const std::vector<mx::array>& inputs, const std::vector<int>& axes,
                                int n) {
    Call call = call_;
    call.problem.batch *= n;
    const size_t rpb_at = signature(op_).inputs.size();
    std::vector<mx::array> all;
    for (size_t i = 0; i < inputs.size(); ++i) {
      mx::array x = inputs[i];
      if (!rpb_ || i != rpb_at) {
        mx::Shape shape = x.shape();
        shape.insert(shape.begin(), n);
        x = axes[i] < 0 ? mx::broadcast_to(x, shape, stream())
                        : mx::moveaxis(x, axes[i], 0, stream());
        x = mx::flatten(x, 0, 1, stream());
      }
      all.push_back(x);
    }
    auto outputs = NeighborhoodOp(stream(), op_, call, rpb_, lengths_).add_to_graph(std::move(all));
    for (auto& y : outputs) y = mx::unflatten(y, 0, {n, call_.problem.batch}, stream());
    return outputs;
  }

  std::vector<mx::array> one_by_one(const std::vector<mx::array>& inputs,
                                    const std::vector<int>& axes, int n) {
    if (n == 0) throw std::invalid_argument("[neighborhood attention] a mapped axis is empty.");
    std::vector<std::vector<mx::array>> outputs;
    for (int k = 0; k < n; ++k) {
      std::vector<mx::array> entry;
      for (size_t i = 0; i < inputs.size(); ++i) {
        entry.push_back(axes[i] < 0 ? inputs[i] : at(inputs[i], axes[i], k));
      }
      const auto results = add_to_graph(std::move(entry));
      outputs.resize(results.size());
      for (size_t i = 0; i < results.size(); ++i) outputs[i].push_back(results[i]);
    }
    std::vector<mx::array> stacked;
    for (const auto& results : outputs) stacked.push_back(mx::stack(results, 0, stream()));
    return stacked;
  }

  mx::array at(const mx::array& x, int axis, int k) {
    mx::Shape first(x.ndim(), 0), last = x.shape();
    first[axis] = k;
    last[axis] = k + 1;
    return mx::squeeze(mx::slice(x, first, last, stream()), axis, stream());
  }

  View input(const mx::array& x, Member member, mx::cpu::CommandEncoder& encoder) const {
    encoder.set_input_array(x);
    mx::array handle = x;
    return view_of(handle, member, call_);
  }

  template <class T>
  static const T* plain_input(const mx::array& x, mx::cpu::CommandEncoder& encoder) {
    encoder.set_input_array(x);
    return x.data<T>();
  }

  void clear_bias_gradient(std::vector<mx::array>& outputs, size_t i) const {
    if (i < outputs.size()) std::fill_n(outputs[i].data<float>(), outputs[i].size(), 0.0f);
  }

  Op op_;
  Call call_;
  bool rpb_, lengths_;
};

}  // namespace

std::vector<mx::array> apply(Op op, const Call& call, std::vector<mx::array> inputs,
                             std::optional<mx::array> rpb, std::optional<mx::array> lengths) {
  const Signature& one = signature(op);
  const mx::Stream stream = mx::to_stream(std::monostate{}, mx::Device::cpu);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (is_float32(one.inputs[i])) inputs[i] = mx::astype(inputs[i], mx::float32, stream);
  }
  if (rpb) {
    inputs.push_back(mx::astype(*rpb, mx::float32, stream));
  }
  if (lengths) {
    inputs.push_back(mx::astype(*lengths, mx::int32, stream));
  }
  return NeighborhoodOp(stream, op, call, rpb.has_value(), lengths.has_value())
      .add_to_graph(std::move(inputs));
}

}  // namespace natten
