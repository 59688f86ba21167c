#include "norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "convert.h"
#include "panel.h"
#include "pool.h"

namespace natten {
namespace {

constexpr int64_t kChunk = 16384;  // numbers: a few microseconds' work

// The sum of all lanes, in every lane.
template <int Width = kLanes / 2, int... I>
inline Floats total(Floats v, std::integer_sequence<int, I...> lanes) {
  v += __builtin_shufflevector(v, v, ((I + Width) % kLanes)...);
  if constexpr (Width > 1) return total<Width / 2>(v, lanes);
  return v;
}

inline Floats total(Floats v) {
  return total<>(v, std::make_integer_sequence<int, kLanes>{});
}

// The first n lanes, then zeros.
inline Floats first_lanes(Floats v, int n) {
  for (int i = n; i < kLanes; ++i) v[i] = 0.0f;
  return v;
}

// The channels [c, c + n) of a row, or of a parameter.
template <class Element>
inline Floats read(const void* row, int64_t c, int n) {
  return load_some<Element>(static_cast<const typename Element::Raw*>(row) + c, 1, n);
}

template <class Element>
inline void write(void* row, int64_t c, int n, Floats x) {
  store_some<Element>(static_cast<typename Element::Raw*>(row) + c, n, x);
}

struct Moments {
  Floats mean, scale;  // scale: 1 / standard deviation

  Floats normed(Floats x) const { return (x - mean) * scale; }
};

// Of the row whose first channel is x[first].
template <class Element>
Moments moments(const NormRows& shape, const void* x, int64_t first) {
  const float count = shape.channels;
  Floats sum{}, squares{};
  for_each_block(shape.channels, [&](int c, int n) { sum += read<Element>(x, first + c, n); });
  const Floats mean = total(sum) / count;
  for_each_block(shape.channels, [&](int c, int n) {
    const Floats off = first_lanes(read<Element>(x, first + c, n) - mean, n);
    squares += off * off;
  });
  return {mean, splat(1.0f / std::sqrt(total(squares)[0] / count + shape.eps))};
}

// A parameter as float32, up to a whole number of vectors.
template <class Element>
std::vector<float> widened(const void* parameter, int channels) {
  std::vector<float> wide(padded(channels, kLanes));
  for_each_block(channels, [&](int c, int n) {
    store(&wide[c], read<Element>(parameter, c, n));
  });
  return wide;
}

// Rows that one thread takes one after the other; which ones does not depend on the threads.
struct Chunks {
  explicit Chunks(const NormRows& shape)
      : rows(std::max<int64_t>(1, kChunk / std::max(1, shape.channels))),
        count(static_cast<int>((shape.rows + rows - 1) / rows)) {}

  // Calls body(place of the row's first channel, chunk) in all threads.
  template <class Body>
  void for_each_row(const NormRows& shape, Body body) const {
    parallel_for(count, [&](int chunk) {
      const int64_t end = std::min(shape.rows, (chunk + 1) * rows);
      for (int64_t row = chunk * rows; row < end; ++row) body(row * shape.channels, chunk);
    });
  }

  int64_t rows;
  int count;
};

template <class Element>
void forward(const NormRows& shape, const void* x, const void* weight, const void* bias,
             void* out) {
  const auto gain = widened<Element>(weight, shape.channels);
  const auto shift = widened<Element>(bias, shape.channels);
  Chunks(shape).for_each_row(shape, [&](int64_t first, int) {
    const Moments at = moments<Element>(shape, x, first);
    for_each_block(shape.channels, [&](int c, int n) {
      const Floats normed = at.normed(read<Element>(x, first + c, n));
      write<Element>(out, first + c, n, normed * load(&gain[c]) + load(&shift[c]));
    });
  });
}

// With n = (x - mean) scale and g = d_out weight: d_x = scale (g - mean(g) - n mean(g n)).
template <class Element>
void backward(const NormRows& shape, const void* x, const void* weight, const void* d_out,
              void* d_x, void* d_weight, void* d_bias) {
  const int channels = shape.channels, width = padded(channels, kLanes);
  const auto gain = widened<Element>(weight, channels);
  const Chunks chunks(shape);
  std::vector<float> sums(2LL * width * chunks.count);  // per chunk: of the weight, of the bias
  chunks.for_each_row(shape, [&](int64_t first, int chunk) {
    const Moments at = moments<Element>(shape, x, first);
    float* sum = &sums[2LL * width * chunk];
    Floats all{}, along{};
    for_each_block(channels, [&](int c, int n) {
      const Floats normed = at.normed(read<Element>(x, first + c, n));
      const Floats d = read<Element>(d_out, first + c, n), g = d * load(&gain[c]);
      all += g;
      along += g * normed;
      store(sum + c, load(sum + c) + d * normed);
      store(sum + width + c, load(sum + width + c) + d);
    });
    const Floats mean = total(all) / float(channels), slope = total(along) / float(channels);
    for_each_block(channels, [&](int c, int n) {
      const Floats normed = at.normed(read<Element>(x, first + c, n));
      const Floats g = read<Element>(d_out, first + c, n) * load(&gain[c]);
      write<Element>(d_x, first + c, n, at.scale * (g - mean - normed * slope));
    });
  });
  for_each_block(channels, [&](int c, int n) {
    Floats of_weight{}, of_bias{};
    for (int chunk = 0; chunk < chunks.count; ++chunk) {
      of_weight += load(&sums[2LL * width * chunk + c]);
      of_bias += load(&sums[2LL * width * chunk + width + c]);
    }
    write<Element>(d_weight, c, n, of_weight);
    write<Element>(d_bias, c, n, of_bias);
  });
}

}  // namespace

void layer_norm(const NormRows& shape, const void* x, const void* weight, const void* bias,
                void* out) {
  with_type(View{.data = nullptr, .dtype = shape.dtype}, [&](auto element, auto*) {
    forward<decltype(element)>(shape, x, weight, bias, out);
  });
}

void layer_norm_backward(const NormRows& shape, const void* x, const void* weight,
                         const void* d_out, void* d_x, void* d_weight, void* d_bias) {
  with_type(View{.data = nullptr, .dtype = shape.dtype}, [&](auto element, auto*) {
    backward<decltype(element)>(shape, x, weight, d_out, d_x, d_weight, d_bias);
  });
}

}  // namespace natten
