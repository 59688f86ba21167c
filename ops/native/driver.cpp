// Runs the core without Python or MLX, for sanitizers: random problems in arrays of exact size, the
// forward pass against loops in double, the fused gradients against the two-step operations, and
// every result against itself on a second run from other threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "attention.h"
#include "convert.h"
#include "driver_plan.h"
#include "driver_rows.h"
#include "pool.h"
#include "window.h"

using namespace natten;

namespace {

std::mt19937 random_bits(1);

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

// A third of the rows end where a vector does.
int channels() { return draw(0, 2) == 0 ? 16 * draw(1, 2) : draw(1, 40); }

// A heads-last array, contiguous, and its view. Rows of queries may lie on a finer map.
struct Tensor {
  std::vector<uint8_t> bytes;
  View layout;  // without the data
  int channels;
  int64_t size;

  Tensor(const Problem& p, bool by_key, int channels, DType dtype = DType::kFloat32)
      : channels(channels) {
    const int heads = by_key ? p.kv_heads : p.heads / p.places();
    int64_t stride = channels;
    layout.dtype = dtype;
    layout.head_stride = stride;
    stride *= heads;
    for (int a = kAxes - 1; a >= 0; --a) {
      layout.axis_stride[a] = stride;
      stride *= by_key ? p.axis[a].length : p.axis[a].queries() * p.axis[a].finer;
    }
    layout.batch_stride = stride;
    if (!by_key) layout = layout.by_cells(p);
    size = stride * p.batch;
    bytes.resize(size * (dtype == DType::kFloat32 ? 4 : 2));
  }

  View view() {
    View view = layout;
    view.data = bytes.data();
    return view;
  }
  Tensor randomize() {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size; ++i) set(i, normal(random_bits));
    return *this;
  }
  void set(int64_t i, float x) {
    with_type(view(), [&](auto element, auto* data) {
      store_some<decltype(element)>(data + i, 1, splat(x));
    });
  }
  double get(int64_t i) {
    double x = 0;
    with_type(view(), [&](auto element, const auto* data) {
      x = load_some<decltype(element)>(data + i, 1, 1)[0];
    });
    return x;
  }
};

Problem random_problem() {
  Problem p;
  const int rank = draw(1, 3);
  const bool wide = draw(0, 15) == 0;  // more rows than a tile takes at once
  const bool finer = !wide && draw(0, 3) == 0;
  const int longest[] = {wide ? 300 : 40, wide ? 20 : 12, wide ? 9 : 7};
  const int largest[] = {wide ? 200 : 9, wide ? 14 : 5, wide ? 6 : 3};
  for (int a = kAxes - rank; a < kAxes; ++a) {
    AxisSpec& axis = p.axis[a];
    axis.kernel = draw(wide ? largest[rank - 1] / 2 : 1, largest[rank - 1]);
    axis.dilation = draw(1, wide ? 1 : 3);
    axis.stride = draw(1, axis.kernel);
    axis.window_stride = draw(1, axis.kernel);
    axis.causal = draw(0, 3) == 0;
    axis.length = draw(1, longest[rank - 1]);
    axis.finer = finer ? draw(1, 3) : 1;
  }
  p.batch = draw(1, 2);
  p.kv_heads = draw(1, 2);
  p.heads = p.kv_heads * draw(1, 2) * p.places();
  p.head_dim = channels();
  p.value_dim = channels();
  p.scale = 0.3f;
  return p;
}

void fail(const char* what, double got, double wanted) {
  std::fprintf(stderr, "%s: %.9g instead of %.9g\n", what, got, wanted);
  std::exit(1);
}

// Plans of larger problems, which need no arrays.
void check_plans() {
  Problem p = random_problem();
  const int longest[] = {3000, 90, 24};
  const int rank = (p.axis[0].length > 1) + (p.axis[1].length > 1) + 1;
  for (AxisSpec& axis : p.axis) {
    if (axis.length > 1) axis.length = draw(1, longest[rank - 1]);
  }
  p.head_dim = draw(1, 200);
  for (Lanes lanes : {Lanes::kQueries, Lanes::kKeys}) {
    if (const char* fault = plan_fault(p, lanes)) fail(fault, 0, 0);
  }
}

void compare(const char* what, Tensor& got, Tensor& wanted, double tolerance) {
  for (int64_t i = 0; i < got.size; ++i) {
    const double x = got.get(i), y = wanted.get(i);
    if (x != y && !(std::abs(x - y) <= tolerance * (1 + std::abs(y)))) fail(what, x, y);
  }
}

// softmax over the slots, in double; returns the LSE.
double softmax(Tensor& attn, int64_t first) {
  double top = -std::numeric_limits<double>::infinity(), total = 0;
  for (int s = 0; s < attn.channels; ++s) top = std::max(top, attn.get(first + s));
  if (std::isinf(top)) {
    for (int s = 0; s < attn.channels; ++s) attn.set(first + s, 0);
    return top;
  }
  for (int s = 0; s < attn.channels; ++s) total += std::exp(attn.get(first + s) - top);
  for (int s = 0; s < attn.channels; ++s) {
    attn.set(first + s, std::exp(attn.get(first + s) - top) / total);
  }
  return top + std::log(total);
}

// The logits of one query and head by the definition, for a call with whole samples, no bias and
// queries on the map of their keys.
void check_logits(const Problem& p, Tensor& query, Tensor& key, Tensor& attn) {
  for (int64_t row = 0; row < attn.size / attn.channels; ++row) {
    const int head = row % p.heads;
    int64_t rest = row / p.heads;
    int q[kAxes], first[kAxes], count[kAxes];
    for (int a = kAxes - 1; a >= 0; --a) {
      const AxisSpec& axis = p.axis[a];
      q[a] = rest % axis.queries() * axis.stride;
      rest /= axis.queries();
      const int group = q[a] % axis.dilation;
      const na_span keys = na_keys_of(q[a] / axis.dilation,
                                      na_class_size(axis.length, axis.dilation, group), axis.kernel,
                                      axis.window_stride, axis.causal);
      first[a] = group + keys.first * axis.dilation;
      count[a] = keys.last - keys.first;
    }
    for (int slot = 0; slot < attn.channels; ++slot) {
      const int t[kAxes] = {slot / (p.axis[1].kernel * p.axis[2].kernel),
                            slot / p.axis[2].kernel % p.axis[1].kernel, slot % p.axis[2].kernel};
      int64_t at = key.layout.at(rest, head / p.sharing());
      bool seen = true;
      for (int a = 0; a < kAxes; ++a) {
        seen &= t[a] < count[a];
        at += (first[a] + t[a] * p.axis[a].dilation) * key.layout.axis_stride[a];
      }
      double sum = 0;
      for (int d = 0; seen && d < p.head_dim; ++d) {
        sum += query.get(row * p.head_dim + d) * key.get(at + d);
      }
      const double wanted = seen ? p.scale * sum : -std::numeric_limits<double>::infinity();
      const double got = attn.get(row * attn.channels + slot);
      if (got != wanted && !(std::abs(got - wanted) <= 1e-4)) fail("qk", got, wanted);
    }
  }
}

struct Run {
  Problem p = random_problem();
  bool biased = draw(0, 1), ragged = draw(0, 2) == 0;
  Tensor query = Tensor(p, false, p.head_dim).randomize();
  Tensor key = Tensor(p, true, p.head_dim).randomize();
  Tensor value = Tensor(p, true, p.value_dim).randomize();
  Tensor d_out = Tensor(p, false, p.value_dim).randomize();
  Tensor d_lse = Tensor(p, false, 1).randomize();
  Tensor attn{p, false, p.slots()}, out{p, false, p.value_dim};
  Tensor lse{p, false, 1}, stats{p, false, 2};
  std::vector<float> rpb, d_rpb, d_rpb_again;
  std::vector<int32_t> lengths;
  Arrays a;

  Run() {
    int entries = p.heads;
    for (const AxisSpec& axis : p.axis) entries *= 2 * axis.kernel - 1;
    std::normal_distribution<float> normal;
    for (int i = 0; biased && i < entries; ++i) rpb.push_back(normal(random_bits));
    d_rpb.resize(rpb.size());
    d_rpb_again.resize(rpb.size());
    for (int b = 0; ragged && b < p.batch; ++b) {
      for (const AxisSpec& axis : p.axis) lengths.push_back(draw(0, axis.length));
    }
    rpb.shrink_to_fit();  // of exact size, too
    lengths.shrink_to_fit();
    a.query = query.view();
    a.key = key.view();
    a.value = value.view();
    a.out = out.view();
    a.lse = lse.view();
    a.stats = stats.view();
    a.d_out = d_out.view();
    a.d_lse = d_lse.view();
    a.rpb = biased ? rpb.data() : nullptr;
    a.lengths = ragged ? lengths.data() : nullptr;
  }

  void check() {
    expect_work();
    forward();
    backward();
    half_types();
  }

  // The fused pass against softmax(qk) av, and qk against its definition.
  void forward() {
    a.attn = attn.view();
    qk_forward(p, a);
    if (!biased && !ragged && p.places() == 1) check_logits(p, query, key, attn);
    Tensor lse_wanted(p, false, 1), two_steps(p, false, p.value_dim);
    for (int64_t row = 0; row < lse.size; ++row) {
      lse_wanted.set(row, softmax(attn, row * attn.channels));
    }
    Arrays steps = a;
    steps.out = two_steps.view();
    av_forward(p, steps);
    attention_forward(p, a);
    compare("lse", lse, lse_wanted, 1e-4);
    compare("out", out, two_steps, 1e-4);
  }

  // The fused gradients against those of the steps; `attn` holds the probabilities.
  void backward() {
    Tensor d_query(p, false, p.head_dim), d_key(p, true, p.head_dim), d_value(p, true, p.value_dim);
    Tensor again_query = d_query, again_key = d_key, again_value = d_value;
    Tensor step_query = d_query, step_key = d_key, step_value = d_value;
    Tensor d_attn(p, false, p.slots());
    const auto outputs = [&](Tensor& q, Tensor& k, Tensor& v, std::vector<float>& bias) {
      Arrays arrays = a;
      arrays.d_query = q.view();
      arrays.d_key = k.view();
      arrays.d_value = v.view();
      arrays.d_attn = d_attn.view();
      arrays.d_rpb = biased ? bias.data() : nullptr;
      return arrays;
    };
    const Arrays first = outputs(d_query, d_key, d_value, d_rpb);
    const Arrays second = outputs(again_query, again_key, again_value, d_rpb_again);
    // Two streams call at the same time: one of them gets the pool.
    std::thread other([&] { attention_backward(p, second); });
    attention_backward(p, first);
    other.join();
    if (d_query.bytes != again_query.bytes || d_key.bytes != again_key.bytes ||
        d_value.bytes != again_value.bytes || d_rpb != d_rpb_again) {
      fail("a second run differs", 0, 0);
    }
    std::vector<float> d_rpb_steps(rpb.size());
    const Arrays steps = outputs(step_query, step_key, step_value, d_rpb_steps);
    av_backward(p, steps);
    for (int64_t row = 0; row < lse.size; ++row) {
      const int64_t at = row * attn.channels;
      double dot = 0;
      for (int s = 0; s < attn.channels; ++s) dot += attn.get(at + s) * d_attn.get(at + s);
      for (int s = 0; s < attn.channels; ++s) {
        d_attn.set(at + s, attn.get(at + s) * (d_attn.get(at + s) - dot + d_lse.get(row)));
      }
    }
    qk_backward(p, steps);
    compare("d_query", d_query, step_query, 1e-3);
    compare("d_key", d_key, step_key, 1e-3);
    compare("d_value", d_value, step_value, 1e-3);
    for (size_t i = 0; i < d_rpb.size(); ++i) {
      if (!(std::abs(d_rpb[i] - d_rpb_steps[i]) <= 1e-3 * (1 + std::abs(d_rpb_steps[i])))) {
        fail("d_rpb", d_rpb[i], d_rpb_steps[i]);
      }
    }
  }

  void half_types() {
    for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      Tensor half(p, false, p.value_dim, dtype), half_value(p, true, p.value_dim, dtype);
      for (int64_t i = 0; i < value.size; ++i) half_value.set(i, value.get(i));
      Arrays arrays = a;
      arrays.value = half_value.view();
      arrays.out = half.view();
      attention_forward(p, arrays);
      compare("half", half, out, dtype == DType::kFloat16 ? 5e-3 : 4e-2);
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  for (int i = 0; i < problems; ++i) {
    Run().check();
    check_plans();
    if (const char* fault = rows_fault(random_bits)) {
      std::fprintf(stderr, "%s is wrong\n", fault);
      return 1;
    }
  }
  std::printf("%d problems, no error\n", problems);
}
