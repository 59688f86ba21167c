// Whether GELU and layer norm, and their gradients, are what loops in double say: in arrays of exact
// size, of every dtype, in place, too.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/convert.h"
#include "core/gelu.h"
#include "core/norm.h"

namespace natten {

// Random numbers, rounded to a dtype.
class Numbers {
 public:
  Numbers(DType dtype, int64_t count, std::mt19937& bits) : dtype_(dtype) {
    bytes_.resize(count * size());
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) {
      visit(i, [&](auto element, auto* at) {
        store_some<decltype(element)>(at, 1, splat(normal(bits)));
      });
    }
  }

  void* data() { return bytes_.data(); }
  std::vector<double> wide() {
    std::vector<double> all(bytes_.size() / size());
    for (size_t i = 0; i < all.size(); ++i) {
      visit(i, [&](auto element, auto* at) {
        all[i] = load_some<decltype(element)>(at, 1, 1)[0];
      });
    }
    return all;
  }
  // Whether these are the wanted ones but for rounding, of numbers about as large as `largest`.
  bool are(const std::vector<double>& wanted, double largest = 1) {
    const double ulp = dtype_ == DType::kFloat32 ? 1e-5 : dtype_ == DType::kFloat16 ? 2e-3 : 2e-2;
    const std::vector<double> got = wide();
    for (size_t i = 0; i < got.size(); ++i) {
      if (!(std::abs(got[i] - wanted[i]) <= ulp * (largest + std::abs(wanted[i])))) return false;
    }
    return true;
  }

 private:
  int64_t size() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  template <class Body>
  void visit(int64_t i, Body body) {
    with_type(View{.data = bytes_.data() + i * size(), .dtype = dtype_}, body);
  }

  DType dtype_;
  std::vector<uint8_t> bytes_;
};

inline const char* gelu_fault(DType dtype, int64_t count, std::mt19937& bits) {
  Numbers x(dtype, count, bits), d_out(dtype, count, bits);
  std::vector<double> out = x.wide(), d_x = d_out.wide();
  for (int64_t i = 0; i < count; ++i) {
    const double v = out[i], below = std::erfc(-v / std::sqrt(2)) / 2;
    out[i] = v * below;
    d_x[i] *= below + v * std::exp(-v * v / 2) / std::sqrt(2 * std::acos(-1));
  }
  gelu_backward(dtype, x.data(), d_out.data(), d_out.data(), count);
  gelu(dtype, x.data(), x.data(), count);
  return x.are(out) && d_out.are(d_x) ? nullptr : "GELU";
}

inline const char* norm_fault(const NormRows& shape, std::mt19937& bits) {
  const int64_t channels = shape.channels, count = shape.rows * channels;
  Numbers x(shape.dtype, count, bits), d_out(shape.dtype, count, bits);
  Numbers weight(shape.dtype, channels, bits), bias(shape.dtype, channels, bits);
  Numbers d_weight = weight, d_bias = bias;
  std::vector<double> out = x.wide(), d_x = d_out.wide(), w = weight.wide(), b = bias.wide();
  std::vector<double> d_w(channels), d_b(channels);
  for (int64_t row = 0; row < shape.rows; ++row) {
    double *y = &out[row * channels], *d = &d_x[row * channels];
    double mean = 0, variance = 0, all = 0, along = 0;
    for (int c = 0; c < channels; ++c) mean += y[c] / channels;
    for (int c = 0; c < channels; ++c) variance += (y[c] - mean) * (y[c] - mean) / channels;
    const double scale = 1 / std::sqrt(variance + shape.eps);
    for (int c = 0; c < channels; ++c) {
      const double normed = (y[c] - mean) * scale;
      d_w[c] += d[c] * normed, d_b[c] += d[c];
      d[c] *= w[c];
      all += d[c] / channels, along += d[c] * normed / channels;
      y[c] = normed;
    }
    for (int c = 0; c < channels; ++c) {
      d[c] = scale * (d[c] - all - y[c] * along);
      y[c] = y[c] * w[c] + b[c];
    }
  }
  layer_norm_backward(shape, x.data(), weight.data(), d_out.data(), d_out.data(), d_weight.data(),
                      d_bias.data());
  layer_norm(shape, x.data(), weight.data(), bias.data(), x.data());
  const double sums = std::sqrt(double(shape.rows));
  if (!x.are(out, 4)) return "layer norm";
  if (!d_out.are(d_x, 30)) return "layer norm's gradient";
  return d_weight.are(d_w, sums) && d_bias.are(d_b, sums) ? nullptr : "layer norm's parameters";
}

// What is wrong with random rows; null if nothing is. A thread's turn is 16,384 numbers.
inline const char* rows_fault(std::mt19937& bits) {
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(bits);
  };
  const DType dtype = static_cast<DType>(draw(0, 2));
  const char* fault = gelu_fault(dtype, draw(0, 1) ? draw(1, 100) : draw(16300, 16500), bits);
  if (fault) return fault;
  const int channels = draw(1, 100), rows = draw(0, 3) ? draw(1, 500) : 16384 / channels + 1;
  // An eps that keeps gradients small where the channels are few.
  return norm_fault({dtype, rows, channels, 0.1f}, bits);
}

}  // namespace natten
