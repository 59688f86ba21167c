#include "norm.h"

#include <stdexcept>

#include "core/norm.h"
#include "core/pool.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/utils.h"
#include "view.h"

namespace natten {
namespace {

namespace mx = mlx::core;

using Arrays = std::vector<mx::array>;

// Layer norm of (x, weight, bias), or of (x, weight, d_out) its gradients in those three.
class LayerNorm : public mx::Primitive {
 public:
  LayerNorm(mx::Stream stream, float eps, bool backward)
      : mx::Primitive(stream), eps_(eps), backward_(backward) {}

  // Adds it to the graph.
  static Arrays of(mx::Stream stream, float eps, bool backward, Arrays inputs) {
    for (auto& x : inputs) x = mx::contiguous(x, false, stream);
    auto primitive = std::make_shared<LayerNorm>(stream, eps, backward);
    auto shapes = primitive->output_shapes(inputs);
    const std::vector<mx::Dtype> dtypes(shapes.size(), inputs[0].dtype());
    return mx::array::make_arrays(std::move(shapes), dtypes, primitive, std::move(inputs));
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    expect_work();
    const mx::array &x = inputs[0], &last = inputs[2];
    if (x.is_donatable()) {
      outputs[0].copy_shared_buffer(x);
    } else if (backward_ && last.is_donatable()) {
      outputs[0].copy_shared_buffer(last);
    } else {
      outputs[0].set_data(mx::allocator::malloc(outputs[0].nbytes()));
    }
    for (size_t i = 1; i < outputs.size(); ++i) {
      outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const void* in[3];
    void* out[3] = {};
    for (size_t i = 0; i < inputs.size(); ++i) {
      encoder.set_input_array(inputs[i]);
      in[i] = inputs[i].data<char>();
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      encoder.set_output_array(outputs[i]);
      out[i] = outputs[i].data<char>();
    }
    const int channels = x.shape(-1);
    const NormRows shape{dtype_of(x), channels ? static_cast<int64_t>(x.size()) / channels : 0,
                         channels, eps_};
    encoder.dispatch([shape, x = in[0], weight = in[1], last = in[2], y = out[0], d_weight = out[1],
                      d_bias = out[2]] {
      if (d_weight) {
        layer_norm_backward(shape, x, weight, last, y, d_weight, d_bias);
      } else {
        layer_norm(shape, x, weight, last, y);
      }
    });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten_zoo] the compiled tier runs on the CPU.");
  }

  const char* name() const override {
    return backward_ ? "NattenLayerNormBackward" : "NattenLayerNorm";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const LayerNorm&>(other);
    return eps_ == o.eps_ && backward_ == o.backward_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes{inputs[0].shape()};
    if (backward_) shapes.insert(shapes.end(), 2, inputs[1].shape());
    return shapes;
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
    const Arrays grads =
        backward_ ? mx::vjp(formula(), primals, cotangents).second
                  : of(stream(), eps_, true,
                       {primals[0], primals[1],
                        mx::astype(cotangents[0], primals[0].dtype(), stream())});
    Arrays wanted;
    for (int i : argnums) wanted.push_back(grads[i]);
    return wanted;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents,
             const std::vector<int>& argnums) override {
    Arrays all;
    for (const auto& x : primals) all.push_back(mx::zeros_like(x, stream()));
    for (size_t k = 0; k < argnums.size(); ++k) all[argnums[k]] = tangents[k];
    return mx::jvp(formula(), primals, all).second;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    const std::vector<int> first(backward_ ? 3 : 1, 0);
    return {mx::vmap(formula(), axes, first)(inputs), first};
  }

 private:
  // The same in MLX's operations, for what is asked too seldom to be compiled.
  std::function<Arrays(const Arrays&)> formula() {
    const auto norm = [eps = eps_, s = stream()](const Arrays& in) -> Arrays {
      return {mx::fast::layer_norm(in[0], in[1], in[2], eps, s)};
    };
    if (!backward_) return norm;
    return [norm, s = stream()](const Arrays& in) {
      return mx::vjp(norm, {in[0], in[1], mx::zeros_like(in[1], s)}, {in[2]}).second;
    };
  }

  float eps_;
  bool backward_;
};

}  // namespace

mx::array layer_norm(const mx::array& x, const mx::array& weight, const mx::array& bias,
                     float eps) {
  const auto stream = mx::to_stream(std::monostate{}, mx::Device::cpu);
  return LayerNorm::of(stream, eps, false, {x, weight, bias})[0];
}

}  // namespace natten
