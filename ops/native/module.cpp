#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "core/attention.h"
#include "core/pool.h"
#include "primitives.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(_ext, m) {
  using natten::Call;
  using natten::Op;

  m.doc() = "Neighborhood attention on the CPU as MLX primitives.";
  m.attr("MLX_VERSION") = MLX_NATTEN_VERSION;

  nb::enum_<Op>(m, "Op")
      .value("ATTENTION", Op::kAttention)
      .value("ATTENTION_BACKWARD", Op::kAttentionBackward)
      .value("QK", Op::kQk)
      .value("QK_BACKWARD", Op::kQkBackward)
      .value("AV", Op::kAv)
      .value("AV_BACKWARD", Op::kAvBackward);

  nb::class_<Call>(m, "Call");
  m.def("make_call", &natten::make_call, "spatial"_a, "kernel_size"_a, "dilation"_a, "stride"_a,
        "window_stride"_a, "is_causal"_a, "batch"_a, "heads"_a, "kv_heads"_a, "head_dim"_a,
        "value_dim"_a, "scale"_a);
  m.def("apply", &natten::apply, "op"_a, "call"_a, "inputs"_a, "rpb"_a.none(), "lengths"_a.none(),
        "Adds one operation to the graph and returns its outputs.");
  m.def("thread_count", &natten::thread_count, "Threads of the pool, the caller included.");
  m.def("fma_peak", &natten::fma_peak, nb::call_guard<nb::gil_scoped_release>(),
        "float32 operations per second that all threads reach on registers alone.");
}
