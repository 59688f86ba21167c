// The two matrix products that everything is made of. Lanes lie across vectors; rows are plain
// memory, each of its numbers broadcast to all lanes, so no sum ever runs across a vector.
#pragma once

#include "simd.h"

namespace natten {

// The rows of a tile: row j begins at base + offsets[j].
struct Rows {
  const float* base;
  const int64_t* offsets;

  const float* operator[](int j) const { return base + offsets[j]; }
};

namespace micro {

// Not inlined: the pointers to the rows need all the registers there are.
template <int N>
[[gnu::noinline]] void scores(const Floats* lanes, const float* const* row, int dim, Floats* out) {
  Floats sum[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sum[n] = out[n];
  for (int64_t d = 0; d < dim; ++d) {
    const Floats lane = lanes[d];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[n] += lane * row[n][d];
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) out[n] = sum[n];
}

// The product of n <= N rows. A single one is taken twice: GCC does not fuse multiply and add where
// there is but one sum to wait for, and every score has to be rounded like every other (backward.cpp).
template <int N>
inline void some_scores(int n, const Floats* lanes, const float* const* row, int dim, Floats* out) {
  if (n == N) return scores<N>(lanes, row, dim, out);
  if constexpr (N > 2) {
    some_scores<N - 1>(n, lanes, row, dim, out);
  } else {
    const float* twice[2] = {row[0], row[0]};
    Floats same[2] = {out[0], out[0]};
    scores<2>(lanes, twice, dim, same);
    out[0] = same[0];
  }
}

template <int N>
inline void accumulate(const Floats* weights, const Rows& rows, int channel, int count,
                       Floats* out) {
  Floats sum[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sum[n] = out[n];
  for (int j = 0; j < count; ++j) {
    const Floats weight = weights[j];
    const float* row = rows[j] + channel;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[n] += weight * row[n];
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) out[n] = sum[n];
}

}  // namespace micro

// out[j] = start(j) + sum over d of lanes[d] * rows[j][d]
template <class Start>
inline void scores(const Floats* lanes, const Rows& rows, int count, int dim, Start start,
                   Floats* out) {
  constexpr int kRows = 8;
  const float* row[kRows];
  for (int j = 0; j < count; j += kRows) {
    const int n = count - j < kRows ? count - j : kRows;
    for (int i = 0; i < n; ++i) {
      row[i] = rows[j + i];
      out[j + i] = start(j + i);
    }
    micro::some_scores<kRows>(n, lanes, row, dim, out + j);
  }
}

// out[d] += sum over j of weights[j] * rows[j][d]; `out` and the rows have room for a multiple of 8.
inline void accumulate(const Floats* weights, const Rows& rows, int count, int channels,
                       Floats* out) {
  int d = 0;
  for (; d + kBlock <= channels; d += kBlock) {
    micro::accumulate<kBlock>(weights, rows, d, count, out + d);
  }
  for (; d < channels; d += 8) micro::accumulate<8>(weights, rows, d, count, out + d);
}

}  // namespace natten
