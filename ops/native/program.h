// The kernels of metal/, launched without Python: what ops/gpu/programs.py lists for an operation,
// kept in C++ and added to the graph by one call.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/fast.h"

namespace natten {

namespace mx = mlx::core;

// A kernel as MLX's mx::fast::metal_kernel and cuda_kernel make it.
struct Kernel {
  mx::fast::CustomKernelFunction launch;

  // Throws where this MLX has no such back-end.
  static Kernel build(const std::string& platform, const std::string& name,
                      const std::vector<std::string>& input_names,
                      const std::vector<std::string>& output_names, const std::string& source,
                      const std::string& header, bool ensure_row_contiguous, int shared_memory);
};

using Template = std::vector<std::pair<std::string, mx::fast::TemplateArg>>;

// One launch. Inputs and outputs are places in the program's list of values; the kernel wants some
// inputs contiguous.
struct Step {
  Kernel kernel;
  Template arguments;
  int groups, threads;
  std::vector<int> inputs, outputs;
  std::vector<bool> contiguous;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
};

class Program {
 public:
  // `dtypes` has an entry per array that a call gives, what the kernels read it as. They are the
  // first values; `constants`, such as the parameter blocks, are the next. The array at `lengths`
  // gets `columns` in front, one per axis that the problem lacks. The value at `shares`, the sums
  // by threadgroup of the gradient of the array at `rpb`, becomes that gradient. Negative: none.
  Program(std::vector<mx::Dtype> dtypes, std::vector<mx::array> constants, std::vector<Step> steps,
          std::vector<int> results, int lengths, std::optional<mx::array> columns, int rpb,
          int shares);

  std::vector<mx::array> operator()(const std::vector<mx::array>& inputs) const;

 private:
  mx::array prepared(const mx::array& input, int place) const;

  std::vector<mx::Dtype> dtypes_;
  std::vector<mx::array> constants_;
  std::vector<Step> steps_;
  std::vector<int> results_;
  int lengths_;
  std::optional<mx::array> columns_;
  int rpb_, shares_;
  size_t values_;
};

}  // namespace natten
