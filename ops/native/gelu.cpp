#include "gelu.h"

#include <numbers>
#include <stdexcept>

#include "core/gelu.h"
#include "core/pool.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "view.h"

namespace natten {
namespace {

namespace mx = mlx::core;

// GELU of x, or of (x, d_out) its gradient.
class Gelu : public mx::Primitive {
 public:
  Gelu(mx::Stream stream, bool backward) : mx::Primitive(stream), backward_(backward) {}

  static mx::array of(mx::Stream stream, const mx::array& x) {
    return add_to_graph(stream, {mx::contiguous(x, false, stream)});
  }

  static mx::array gradient(mx::Stream stream, const mx::array& x, const mx::array& d_out) {
    return add_to_graph(stream, {mx::contiguous(x, false, stream),
                                 mx::contiguous(mx::astype(d_out, x.dtype(), stream), false, stream)});
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    expect_work();
    mx::array& out = outputs[0];
    if (inputs[0].is_donatable()) {
      out.copy_shared_buffer(inputs[0]);
    } else {
      out.set_data(mx::allocator::malloc(out.nbytes()));
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const auto& x : inputs) encoder.set_input_array(x);
    encoder.set_output_array(out);
    const void* x = inputs[0].data<char>();
    const void* d_out = backward_ ? inputs[1].data<char>() : nullptr;
    encoder.dispatch([x, d_out, result = static_cast<void*>(out.data<char>()),
                      dtype = dtype_of(out), count = static_cast<int64_t>(out.size())] {
      if (d_out) {
        gelu_backward(dtype, x, d_out, result, count);
      } else {
        gelu(dtype, x, result, count);
      }
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("[natten_zoo] the compiled tier runs on the CPU.");
  }

  const char* name() const override { return backward_ ? "NattenGeluBackward" : "NattenGelu"; }

  bool is_equivalent(const mx::Primitive& other) const override {
    return backward_ == static_cast<const Gelu&>(other).backward_;
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>&) override {
    std::vector<mx::array> grads;
    for (int i : argnums) grads.push_back(mx::multiply(slope(primals, i), cotangents[0], stream()));
    return grads;
  }

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override {
    mx::array sum = mx::multiply(slope(primals, argnums[0]), tangents[0], stream());
    for (size_t k = 1; k < argnums.size(); ++k) {
      sum = mx::add(sum, mx::multiply(slope(primals, argnums[k]), tangents[k], stream()), stream());
    }
    return {sum};
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override {
    size_t mapped = 0;
    while (axes[mapped] < 0) ++mapped;
    const int n = inputs[mapped].shape(axes[mapped]);
    std::vector<mx::array> all;
    for (size_t i = 0; i < inputs.size(); ++i) {
      mx::Shape shape = inputs[i].shape();
      shape.insert(shape.begin(), n);
      const mx::array x = axes[i] < 0 ? mx::broadcast_to(inputs[i], shape, stream())
                                      : mx::moveaxis(inputs[i], axes[i], 0, stream());
      all.push_back(mx::contiguous(x, false, stream()));
    }
    return {{add_to_graph(stream(), std::move(all))}, {0}};
  }

 private:
  static mx::array add_to_graph(mx::Stream stream, std::vector<mx::array> inputs) {
    const mx::Shape shape = inputs[0].shape();
    const mx::Dtype dtype = inputs[0].dtype();
    auto primitive = std::make_shared<Gelu>(stream, inputs.size() > 1);
    return mx::array(shape, dtype, std::move(primitive), std::move(inputs));
  }

  // The derivative of the result in an input: of GELU itself, Phi + x phi; of its gradient, which
  // is d_out (Phi + x phi), d_out phi (2 - x^2) in x and Phi + x phi in d_out.
  mx::array slope(const std::vector<mx::array>& primals, int argument) {
    const mx::array& x = primals[0];
    if (!backward_ || argument == 1) {
      return gradient(stream(), x, mx::ones_like(x, stream()));
    }
    const auto s = stream();
    const mx::array square = mx::square(mx::astype(x, mx::float32, s), s);
    const float scale = std::numbers::inv_sqrtpi_v<float> / std::numbers::sqrt2_v<float>;
    const mx::array density =
        mx::multiply(mx::exp(mx::multiply(square, mx::array(-0.5f), s), s), mx::array(scale), s);
    const mx::array bend = mx::multiply(density, mx::subtract(mx::array(2.0f), square, s), s);
    return mx::astype(mx::multiply(primals[1], bend, s), x.dtype(), s);
  }

  bool backward_;
};

}  // namespace

mx::array gelu(const mx::array& x) {
  return Gelu::of(mx::to_stream(std::monostate{}, mx::Device::cpu), x);
}

}  // namespace natten
