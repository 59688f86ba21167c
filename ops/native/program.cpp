#include "program.h"

#include <algorithm>
#include <stdexcept>

#include "mlx/backend/cuda/cuda.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/ops.h"

namespace natten {
namespace {

// MLX puts inputs of fewer elements into another address space; the kernels want one.
constexpr size_t kLongEnough = 8;

mx::array long_enough(const mx::array& x) {
  if (x.size() >= kLongEnough) return x;
  mx::Shape more = x.shape();
  more[0] = kLongEnough;
  return mx::concatenate({x, mx::zeros(more, x.dtype())}, 0);
}

std::vector<mx::array> launch(const Step& step, const std::vector<mx::array>& inputs) {
  if (step.groups > 0) {
    return step.kernel.launch(inputs, step.shapes, step.dtypes,
                              {step.groups * step.threads, 1, 1}, {step.threads, 1, 1},
                              step.arguments, std::nullopt, false, {});
  }
  std::vector<mx::array> zeros;
  for (size_t i = 0; i < step.shapes.size(); ++i) {
    zeros.push_back(mx::zeros(step.shapes[i], step.dtypes[i]));
  }
  return zeros;
}

}  // namespace

Kernel Kernel::build(const std::string& platform, const std::string& name,
                     const std::vector<std::string>& input_names,
                     const std::vector<std::string>& output_names, const std::string& source,
                     const std::string& header, bool ensure_row_contiguous, int shared_memory) {
  const bool cuda = platform == "cuda";
  if (!(cuda ? mx::cu::is_available() : mx::metal::is_available())) {
    throw std::runtime_error(std::string("[natten_zoo] this MLX has no ") +
                             (cuda ? "CUDA" : "Metal") + " back-end.");
  }
  if (cuda) {
    return {mx::fast::cuda_kernel(name, input_names, output_names, source, header,
                                  ensure_row_contiguous, shared_memory)};
  }
  return {mx::fast::metal_kernel(name, input_names, output_names, source, header,
                                 ensure_row_contiguous)};
}

Program::Program(std::vector<mx::Dtype> dtypes, std::vector<mx::array> constants,
                 std::vector<Step> steps, std::vector<int> results, int lengths,
                 std::optional<mx::array> columns, int rpb, int shares)
    : dtypes_(std::move(dtypes)), constants_(std::move(constants)), steps_(std::move(steps)),
      results_(std::move(results)), lengths_(lengths), columns_(std::move(columns)), rpb_(rpb),
      shares_(shares) {
  values_ = dtypes_.size() + constants_.size();
  for (const Step& step : steps_) {
    for (int place : step.outputs) values_ = std::max<size_t>(values_, place + 1);
  }
}

mx::array Program::prepared(const mx::array& input, int place) const {
  mx::array x = mx::astype(input, dtypes_[place]);
  if (place == lengths_ && columns_) x = mx::concatenate({*columns_, x}, 1);
  return long_enough(x);
}

std::vector<mx::array> Program::operator()(const std::vector<mx::array>& inputs) const {
  if (inputs.size() != dtypes_.size()) {
    throw std::invalid_argument("[natten_zoo] the arrays do not fit the program.");
  }
  std::vector<std::optional<mx::array>> values(values_);
  for (size_t i = 0; i < inputs.size(); ++i) values[i] = prepared(inputs[i], i);
  std::copy(constants_.begin(), constants_.end(), values.begin() + inputs.size());
  for (const Step& step : steps_) {
    std::vector<mx::array> arrays;
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      const mx::array x = long_enough(values.at(step.inputs[i]).value());
      arrays.push_back(step.contiguous.at(i) ? mx::contiguous(x) : x);
    }
    const auto outputs = launch(step, arrays);
    for (size_t i = 0; i < outputs.size(); ++i) values[step.outputs[i]] = outputs[i];
  }
  if (shares_ >= 0) {
    const mx::array sum = mx::sum(*values[shares_], 1);
    values[shares_] = mx::astype(mx::reshape(sum, inputs[rpb_].shape()), inputs[rpb_].dtype());
  }
  std::vector<mx::array> results;
  for (int place : results_) results.push_back(values.at(place).value());
  return results;
}

}  // namespace natten
