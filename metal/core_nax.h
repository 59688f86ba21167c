// Products by the neural accelerators of an M5 and later: a team is a simdgroup with 16 rows, and 32
// tokens at a time, of float16 or bfloat16. matmul2d of MetalPerformancePrimitives reaches them, from
// macOS 26.2 on. Which lane holds what is its own affair. It is taken to be as MLX's attention has it,
// and ops/gpu/trial.py asks the device before anybody relies on that.
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

enum { NA_SECOND_LANE = 8 };  // what the numbers of two lanes that share a row differ by, besides 1
enum { NA_KEEPS_SEEN = 1 };   // in threadgroup memory (slab.h)
enum { NA_KEEPS_MINE = 0 };   // in registers (team.h)
enum { NA_SAME_DOTS = 0 };    // nobody promises an order of sums (rows.h)
enum { NA_MOST_HELD = 112 };  // registers for a team's rows, of which a lane has two

// Matrices are squares of 16 x 16, or two of them. Of a square a lane holds four neighbors of a row,
// (row, column) to (row, column + 3), and then the same of row + 8.
template <typename T>
METAL_FUNC na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = ((lane >> 2) & 4) + ((lane >> 1) & 3);
  me.column = (lane & 8) + (lane & 1) * 4;
  me.wide = false;
  return me;
}

// The token of a fragment that a lane looks up for its row i of two squares.
METAL_FUNC int na_lookup(na_lane me, int i) { return me.row + i * 8; }

// Where in two squares side by side a lane has its number n of row h.
METAL_FUNC constexpr int na_in_squares(int h, int n) { return n / 4 * 8 + h * 4 + n % 4; }

// sum += left * right of 16 x 16 and 16 x 32, or left * right^T, right being 32 x 16.
template <bool TRANSPOSED, typename T>
METAL_FUNC void na_multiply(thread float (&sum)[16], const thread T (&left)[8],
                            const thread T (&right)[16]) {
  constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(
      16, 32, 16, false, TRANSPOSED, true,
      mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
  mpp::tensor_ops::matmul2d<shape, metal::execution_simdgroup> product;
  auto a = product.template get_left_input_cooperative_tensor<T, T, float>();
  auto b = product.template get_right_input_cooperative_tensor<T, T, float>();
  auto c = product.template get_destination_cooperative_tensor<
      metal::remove_addrspace_t<decltype(a)>, metal::remove_addrspace_t<decltype(b)>, float>();
  NA_UNROLL for (int e = 0; e < 8; e++) a[e] = left[e];
  NA_UNROLL for (int e = 0; e < 16; e++) b[e] = right[e];
  NA_UNROLL for (int e = 0; e < 16; e++) c[e] = sum[e];
  product.run(a, b, c);
  NA_UNROLL for (int e = 0; e < 16; e++) sum[e] = c[e];
}

template <typename T>
METAL_FUNC void na_read_four(thread T* to, const threadgroup T* from) {
  const vec<T, 4> four = *(const threadgroup vec<T, 4>*)from;
  NA_UNROLL for (int n = 0; n < 4; n++) to[n] = four[n];
}

// dot[row, token] += left[row, channel] * slab[token, channel], over F * 16 channels.
template <int F, bool SWAPPED = false, typename T>
METAL_FUNC void na_dot(thread na_pairs<float>& dot, const thread na_frag<T>* left,
                       const threadgroup T* slab, const thread na_picked& at, na_lane me) {
  float sum[16];
  NA_UNROLL for (int e = 0; e < 16; e++) sum[na_in_squares(e / 8, e % 8)] = dot.e[e];
  NA_UNROLL for (int f = 0; f < F; f++) {
    T tokens[16];
    NA_UNROLL for (int i = 0; i < 4; i++)
      na_read_four(tokens + i * 4, slab + at.mine[i] + f * 16 + me.column);
    na_multiply<true>(sum, left[f].e, tokens);
  }
  NA_UNROLL for (int e = 0; e < 16; e++) dot.e[e] = sum[na_in_squares(e / 8, e % 8)];
}

// sum[row, channel] += left[row, token] * slab[token, channel], for F * 16 channels, 32 at a time: of
// an odd F the last square is not there.
template <int F, typename T>
METAL_FUNC void na_accumulate(thread na_frag<float>* sum, const thread na_pairs<float>& left,
                              const threadgroup T* slab, const thread na_picked& at,
                              na_lane me) {
  NA_UNROLL for (int f = 0; f < F; f += 2) {
    float sums[16] = {};
    NA_UNROLL for (int e = 0; e < 16; e++)
      if (f + e / 8 < F) sums[e] = sum[f + e / 8].e[e % 8];
    NA_UNROLL for (int t = 0; t < 8; t += 4) {  // a lane has four of every 16 tokens
      T weights[8], tokens[16] = {};
      NA_UNROLL for (int e = 0; e < 8; e++) weights[e] = T(left.e[e / 4 * 8 + t + e % 4]);
      NA_UNROLL for (int i = 0; i < 4; i++)  // two rows of each square
        if (f + i / 2 < F)
          na_read_four(tokens + i * 4, slab + at.mine[t / 2 + i % 2] + (f + i / 2) * 16 + me.column);
      na_multiply<false>(sums, weights, tokens);
    }
    NA_UNROLL for (int e = 0; e < 16; e++)
      if (f + e / 8 < F) sum[f + e / 8].e[e % 8] = sums[e];
  }
}
