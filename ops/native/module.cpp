#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "core/attention.h"
#include "core/pool.h"
#include "gelu.h"
#include "norm.h"
#include "primitives.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

namespace mx = mlx::core;
using natten::Kernel;
using natten::Program;
using natten::Step;

// A plan's template arguments. nanobind would read True as 1, but a kernel's text needs a bool.
natten::Template template_arguments(nb::iterable pairs) {
  natten::Template arguments;
  for (nb::handle pair : pairs) {
    const auto name = nb::cast<std::string>(pair[0]);
    const nb::object value = pair[1];
    if (nb::isinstance<nb::bool_>(value)) {
      arguments.emplace_back(name, nb::cast<bool>(value));
    } else if (nb::isinstance<nb::int_>(value)) {
      arguments.emplace_back(name, nb::cast<int>(value));
    } else {
      arguments.emplace_back(name, nb::cast<mx::Dtype>(value));
    }
  }
  return arguments;
}

// A kernel that is a Python function with the arguments of what mx.fast.metal_kernel returns.
Kernel python_kernel(nb::callable function) {
  return {[function](const auto& inputs, const auto& shapes, const auto& dtypes, auto grid,
                     auto threadgroup, const natten::Template& arguments, auto...) {
    nb::list pairs;
    std::vector<std::vector<int>> sizes;
    for (const auto& shape : shapes) sizes.emplace_back(shape.begin(), shape.end());
    for (const auto& [name, value] : arguments) {
      std::visit([&](auto x) { pairs.append(nb::make_tuple(name, x)); }, value);
    }
    return nb::cast<std::vector<mx::array>>(
        function("inputs"_a = inputs, "template"_a = pairs, "grid"_a = grid,
                 "threadgroup"_a = threadgroup, "output_shapes"_a = sizes,
                 "output_dtypes"_a = dtypes));
  }};
}

void bind_programs(nb::module_& m) {
  nb::class_<Kernel>(m, "Kernel", "A kernel of metal/ as MLX builds it.")
      .def(nb::new_(&Kernel::build), "platform"_a, "name"_a, "input_names"_a, "output_names"_a,
           "source"_a, "header"_a, "ensure_row_contiguous"_a, "shared_memory"_a = 0)
      .def_static("of", &python_kernel, "function"_a);
  nb::class_<Step>(m, "Step", "One launch of a program.")
      .def(nb::new_([](const Kernel& kernel, nb::iterable arguments, int groups, int threads,
                       std::vector<int> inputs, std::vector<int> outputs,
                       std::vector<bool> contiguous,
                       const std::vector<std::vector<int>>& shapes,
                       std::vector<mx::Dtype> dtypes) {
             std::vector<mx::Shape> sizes;
             for (const auto& shape : shapes) sizes.emplace_back(shape.begin(), shape.end());
             return Step{kernel, template_arguments(arguments), groups, threads, inputs, outputs,
                         contiguous, sizes, dtypes};
           }),
           "kernel"_a, "template"_a, "groups"_a, "threads"_a, "inputs"_a, "outputs"_a, "contiguous"_a,
           "shapes"_a, "dtypes"_a);
  nb::class_<Program>(m, "Program", "An operation as launches; adds them to the graph.")
      .def(nb::init<std::vector<mx::Dtype>, std::vector<mx::array>, std::vector<Step>,
                    std::vector<int>, int, std::optional<mx::array>, int, int>(),
           "dtypes"_a, "constants"_a, "steps"_a, "results"_a, "lengths"_a, "columns"_a.none(),
           "rpb"_a, "shares"_a)
      .def("__call__", &Program::operator(), "arrays"_a);
}

}  // namespace

NB_MODULE(_ext, m) {
  using natten::Call;
  using natten::Op;

  m.doc() = "Neighborhood attention as MLX primitives on the CPU, as custom kernels on a GPU.";
  m.attr("MLX_VERSION") = MLX_NATTEN_VERSION;
  m.attr("FACE") = NATTEN_ZOO_FACE;

  // MLX shares this table, so that it holds for what its mx.grad passes on, too.
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const natten::NotImplemented& error) {
      PyErr_SetString(PyExc_NotImplementedError, error.what());
    }
  });

  nb::enum_<Op>(m, "Op")
      .value("FORWARD", Op::kAttention)
      .value("BACKWARD", Op::kAttentionBackward)
      .value("FORWARD_PACKED", Op::kAttentionPacked)
      .value("BACKWARD_PACKED", Op::kAttentionBackwardPacked)
      .value("QK", Op::kQk)
      .value("QK_BACKWARD", Op::kQkBackward)
      .value("AV", Op::kAv)
      .value("AV_BACKWARD", Op::kAvBackward);

  nb::class_<Call>(m, "Call");
  m.def("make_call", &natten::make_call, "spatial"_a, "kernel_size"_a, "dilation"_a, "stride"_a,
        "window_stride"_a, "is_causal"_a, "finer"_a, "batch"_a, "heads"_a, "kv_heads"_a,
        "head_dim"_a, "value_dim"_a, "scale"_a);
  m.def("apply", &natten::apply, "op"_a, "call"_a, "inputs"_a, "rpb"_a.none(), "lengths"_a.none(),
        "Adds one operation to the graph and returns its outputs.");
  m.def("gelu", &natten::gelu, "x"_a, "GELU by the error function, on the CPU.");
  m.def("layer_norm", &natten::layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a,
        "Layer norm of the last axis, on the CPU.");
  bind_programs(m);
  m.def("thread_count", &natten::thread_count, "Threads of the pool, the caller included.");
  m.def("fma_peak", &natten::fma_peak, nb::call_guard<nb::gil_scoped_release>(),
        "float32 operations per second that all threads reach on registers alone.");
}
