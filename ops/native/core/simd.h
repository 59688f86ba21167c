// Vectors of floats in the compilers' own notation: the same source for AVX-512, AVX2, SSE, NEON.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace natten {

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // one register
constexpr int kBlock = 16;  // accumulators that fit into the register file
#else
constexpr int kLanes = 8;  // one AVX register, two of SSE or NEON
constexpr int kBlock = 8;
#endif

using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// Score of a key that a query does not see. Finite, so that no difference of scores is NaN.
constexpr float kMasked = -3e38f;

// What an attention's bias is at least, so that no key in a window looks like one outside. The same
// in all tiers: it is the LSE of a row that a bias hides altogether.
constexpr float kLeastBias = -1e29f * kLog2E;

inline Floats splat(float x) { return Floats{} + x; }

// NaN in `a` wins, so that it reaches the output.
inline Floats max(Floats a, Floats b) { return a < b ? b : a; }

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

template <class To, class From>
inline To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}

// 2^x for x <= 127, within 2 ulp: 2^n 2^r with n = round(x). From -127 downwards it is exactly 0,
// as the exponent bits of 2^-127 are.
inline Floats exp2(Floats x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits, biased by 127.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Floats bounded = max(x, splat(-127.0f));
  const Floats biased = bounded + kRound;
  const Floats r = bounded - (biased - kRound);
  Floats p = r * 1.54614447e-4f + 1.34004282e-3f;
  p = p * r + 9.61805668e-3f;
  p = p * r + 5.55032723e-2f;
  p = p * r + 2.40226509e-1f;
  p = p * r + 6.93147207e-1f;
  p = p * r + 1.0f;
  return p * bits<Floats>(bits<Ints>(biased) << 23);
}

// Natural logarithm of positive, normal numbers: m in [sqrt(1/2), sqrt(2)), x = 2^n m.
inline Floats log(Floats x) {
  const Ints word = bits<Ints>(x) - 0x3f3504f3;  // sqrt(1/2)
  const Floats n = __builtin_convertvector(word >> 23, Floats);
  const Floats f = bits<Floats>((word & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const Floats f2 = f * f;
  Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats tail = p * f * f2 - n * 2.12194440e-4f - f2 * 0.5f;
  return x == x ? f + tail + n * 0.693359375f : x;
}

// The lower (Half = 0) or upper halves of two vectors, interleaved.
template <int Half, int... I>
inline Floats interleave(Floats a, Floats b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (Half * kLanes / 2 + I / 2 + I % 2 * kLanes)...);
}

// Transposes a square of kLanes vectors in place: log2(kLanes) perfect shuffles.
inline void transpose(Floats* square) {
  constexpr std::make_integer_sequence<int, kLanes> lanes{};
  Floats other[kLanes];
  const auto shuffle = [&](const Floats* from, Floats* to) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      to[2 * i] = interleave<0>(from[i], from[i + kLanes / 2], lanes);
      to[2 * i + 1] = interleave<1>(from[i], from[i + kLanes / 2], lanes);
    }
  };
  for (int width = 1; width < kLanes; width *= 4) {
    shuffle(square, other);
    if (2 * width < kLanes) {
      shuffle(other, square);
    } else {
      std::memcpy(square, other, sizeof other);
    }
  }
}

}  // namespace natten
