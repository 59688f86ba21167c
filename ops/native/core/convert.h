// float16 and bfloat16 to float32 and back, a vector at a time, in integer arithmetic that every
// compiler vectorises.
#pragma once

#include "problem.h"
#include "simd.h"

namespace natten {

using Shorts = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));

inline Ints select(Ints condition, Ints yes, Ints no) { return condition ? yes : no; }

struct Float32 {
  using Raw = float;
  using Vector = Floats;

  static Floats widen(Floats x) { return x; }
  static Floats narrow(Floats x) { return x; }
};

struct BFloat16 {
  using Raw = uint16_t;
  using Vector = Shorts;

  static Floats widen(Shorts x) { return bits<Floats>(__builtin_convertvector(x, Ints) << 16); }

  // To nearest even. A NaN keeps its upper bits and gets one more, as they alone may be 0.
  static Shorts narrow(Floats x) {
    const Ints word = bits<Ints>(x), upper = (word >> 16) & 0xffff;
    const Ints rounded = ((word + 0x7fff + (upper & 1)) >> 16) & 0xffff;
    return __builtin_convertvector(select(x == x, rounded, upper | 0x40), Shorts);
  }
};

struct Float16 {
  using Raw = uint16_t;
  using Vector = Shorts;

  // The exponent is moved by a multiplication, which normalises the subnormal numbers as well.
  static Floats widen(Shorts x) {
    const Ints word = __builtin_convertvector(x, Ints), magnitude = (word & 0x7fff) << 13;
    const Ints scaled = bits<Ints>(bits<Floats>(magnitude) * 0x1p112f);
    const Ints finite = magnitude < (0x7c00 << 13);
    return bits<Floats>(select(finite, scaled, magnitude | 0x7f800000) | (word & 0x8000) << 16);
  }

  // To nearest even. Adding 1/2, whose last bit is worth 2^-24, rounds the subnormal numbers.
  static Shorts narrow(Floats x) {
    const Ints word = bits<Ints>(x), magnitude = word & 0x7fffffff;
    const Ints odd = (magnitude >> 13) & 1;
    const Ints normal = (magnitude - (112 << 23) + 0xfff + odd) >> 13;
    const Ints tiny = bits<Ints>(bits<Floats>(magnitude) + 0.5f) - 0x3f000000;
    const Ints nan = (Ints{} + 0x7e00), infinite = (Ints{} + 0x7c00);
    Ints half = select(magnitude < (113 << 23), tiny, normal);
    half = select(magnitude >= 0x477ff000, infinite, half);
    half = select(magnitude > 0x7f800000, nan, half);
    return __builtin_convertvector(half | ((word >> 16) & 0x8000), Shorts);
  }
};

// Calls body with an element type and the data of a view as a pointer to it.
template <class Body>
void with_type(const View& view, Body body) {
  switch (view.dtype) {
    case DType::kFloat32:
      return body(Float32{}, static_cast<float*>(view.data));
    case DType::kFloat16:
      return body(Float16{}, static_cast<uint16_t*>(view.data));
    case DType::kBFloat16:
      return body(BFloat16{}, static_cast<uint16_t*>(view.data));
  }
}

// The first n <= kLanes numbers, then zeros.
template <class Element>
inline Floats load_some(const typename Element::Raw* in, int64_t stride, int n) {
  typename Element::Vector v{};
  if (n == kLanes && stride == 1) {
    std::memcpy(&v, in, sizeof v);
  } else {
    for (int i = 0; i < n; ++i) v[i] = in[i * stride];
  }
  return Element::widen(v);
}

template <class Element>
inline void store_some(typename Element::Raw* out, int n, Floats x) {
  const typename Element::Vector v = Element::narrow(x);
  if (n == kLanes) {
    std::memcpy(out, &v, sizeof v);
  } else {
    std::memcpy(out, &v, n * sizeof(typename Element::Raw));
  }
}

// Calls body(first, n) for the channels [first, first + n), kLanes at a time.
template <class Body>
inline void for_each_block(int channels, Body body) {
  int c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, kLanes);
  if (c < channels) body(c, channels - c);
}

}  // namespace natten
