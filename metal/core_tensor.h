// Products of 16x8 matrices by CUDA's tensor cores: a team is a warp, with 16 or 32 rows, and 8, 16
// or 32 tokens at a time.

enum { NA_SECOND_LANE = 2 };  // what the numbers of two lanes that share a row differ by, besides 1
enum { NA_KEEPS_SEEN = 0 };   // in threadgroup memory (slab.h)
enum { NA_KEEPS_MINE = 1 };   // in registers (team.h)
enum { NA_SAME_DOTS = 1 };    // the same bits whichever of two rows is left, queries or keys
enum { NA_MOST_HELD = 1 << 20 };

// A lane holds two neighbors of a matrix row, as tensor cores have them: (row, column) and
// (row, column + 1), and the same of row + 8.
template <typename T>
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = lane >> 2;
  me.column = (lane & 3) * 2;
  me.wide = sizeof(T) == 4;
  return me;
}

// The token of a fragment that a lane looks up. Of float32 one in each eight. Of 16 bits a row of the
// four 8x8 matrices of ldmatrix, which come in pairs: channels side by side for dot products
// (even i), tokens one after the other for sums over them (odd i).
NA_FN int na_lookup(na_lane me, int i) {
  if (me.wide) return me.row + i * 8;
  if (NA_PER_ROW == 2) return me.index & 7;
  return i / 2 * 16 + (me.index & 7) + (me.index >> (i % 2 ? 0 : 1) & 8);
}

// All that the lanes do together is volatile: else the compiler may move it into a branch that only
// some of them take.

// ---- 16 bits: matrices of 8 tokens x 8 channels come from the slab with ldmatrix, up to four at
// once: lane i gives the address of row i % 8 of matrix i / 8.

template <int N>
NA_FN void na_load_matrices(unsigned* to, const void* row, bool transposed) {
  const unsigned at = unsigned(__cvta_generic_to_shared(row));
  if (N == 4 && transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else if (N == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0]) : "r"(at) : "memory");
}

// Eight tokens: the matrices of channels 8 f, 8 (f + 1), ...
template <int F, typename T>
NA_FN void na_load_channels(unsigned* to, const T* row, bool transposed) {
  const int matrix = (threadIdx.x >> 3) & 3;
  NA_UNROLL for (int f = 0; f < F; f += 4) {
    if (F - f >= 4) na_load_matrices<4>(to + f, row + (f + matrix) * 8, transposed);
    else
      NA_UNROLL for (int g = f; g < F; g++) na_load_matrices<1>(to + g, row + g * 8, transposed);
  }
}

// Sixteen tokens, channels 8 f and 8 (f + 1): the matrices [token][channel] or, transposed,
// [channel][token].
template <typename T>
NA_FN void na_load_square(unsigned (&to)[2][2], const T* row, int f, bool transposed) {
  const int right = threadIdx.x >> (transposed ? 4 : 3) & 1;
  na_load_matrices<4>(to[0], row + (f + right) * 8, transposed);
}

// sum += left * right: `upper` are two neighbors of the lane's row of the sum, `lower` of row + 8.
#define NA_MULTIPLY(TYPE, NAME)                                                              \
  NA_FN void na_multiply(const TYPE*, float* upper, float* lower, const unsigned* left,      \
                         unsigned right) {                                                   \
    asm volatile(                                                                            \
        "mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME ".f32 "                        \
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                                \
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])                     \
        : "r"(left[0]), "r"(left[1]), "r"(right));                                           \
  }                                                                                          \
  NA_FN void na_multiply(const TYPE*, float* upper, float* lower, const unsigned* left,      \
                         unsigned right, unsigned next) {                                    \
    asm volatile(                                                                            \
        "mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                       \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])                     \
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right), "r"(next));    \
  }
NA_MULTIPLY(__half, "f16")
NA_MULTIPLY(__nv_bfloat16, "bf16")

// ---- float32: split into the first 10 bits of the mantissa and the rest, whose end the tensor cores
// ignore; the three products that matter keep its precision.

template <int N>
NA_FN void na_split(const float* x, unsigned* high, unsigned* low) {
  NA_UNROLL for (int e = 0; e < N; e++) {
    high[e] = __float_as_uint(x[e]) & 0xffffe000u;
    low[e] = __float_as_uint(x[e] - __uint_as_float(high[e]));
  }
}
NA_FN void na_multiply_tf32(float* upper, float* lower, const unsigned* a, const unsigned* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The two numbers of a lane are its columns 2 i and 2 i + 1 here, i and i + 4 to the tensor core:
// for both operands alike, so that the sum over them is the same. SWAPPED has the sums of the operands
// in each other's places, to the last bit.
template <bool SWAPPED = false>
NA_FN void na_multiply(float* upper, float* lower, const float* left, const float* left_lower,
                       const float* right) {
  const float both[4] = {left[0], left[1], left_lower[0], left_lower[1]};
  unsigned high_a[4], low_a[4], high_b[2], low_b[2];
  na_split<4>(both, high_a, low_a);
  na_split<2>(right, high_b, low_b);
  if (SWAPPED) na_multiply_tf32(upper, lower, high_a, low_b);
  na_multiply_tf32(upper, lower, low_a, high_b);
  if (!SWAPPED) na_multiply_tf32(upper, lower, high_a, low_b);
  na_multiply_tf32(upper, lower, high_a, high_b);
}

// ---- dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.

template <int F, bool SWAPPED = false, typename T>
NA_FN void na_dot(na_pairs<float>& dot, const na_frag<T>* left, const T* slab,
                  const na_picked& at, na_lane) {
  constexpr int BLOCKS = (NA_PER_ROW + 3) / 4;  // of 16 tokens, or 8
  unsigned eight[F];
  if (NA_PER_ROW == 2) na_load_channels<F>(eight, slab + at.mine[0], false);
  NA_UNROLL for (int f = 0; f < F; f += 2) {
    unsigned right[BLOCKS][2][2];  // tokens, channels
    NA_UNROLL for (int b = 0; b < BLOCKS; b++) {
      if (NA_PER_ROW > 2) na_load_square(right[b], slab + at.mine[2 * b % NA_LOOKUPS], f, false);
      else right[b][0][0] = eight[f], right[b][0][1] = eight[f + 1 < F ? f + 1 : f];
    }
    NA_UNROLL for (int h = 0; h < NA_ROWS; h += 2) {
      const int next = f + 1 < F ? f + 1 : f;
      const unsigned rows[4] = {
          na_two(left[f].e + 2 * h, slab), na_two(left[f].e + 2 * h + 2, slab),
          na_two(left[next].e + 2 * h, slab), na_two(left[next].e + 2 * h + 2, slab)};
      NA_UNROLL for (int t = 0; t < NA_PER_ROW; t += 2) {
        float *upper = dot.e + h * NA_PER_ROW + t, *lower = upper + NA_PER_ROW;
        const unsigned* token = right[t / 4][t / 2 % 2];
        if (f + 1 < F) na_multiply(slab, upper, lower, rows, token[0], token[1]);
        else na_multiply(slab, upper, lower, rows, token[0]);
      }
    }
  }
}
template <int F, bool SWAPPED = false>
NA_FN void na_dot(na_pairs<float>& dot, const na_frag<float>* left, const float* slab,
                  const na_picked& at, na_lane me) {
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t += 2)
    NA_UNROLL for (int f = 0; f < F; f++) {
      const float2 pair =
          *reinterpret_cast<const float2*>(slab + at.mine[t / 2] + f * 8 + me.column);
      const float right[2] = {pair.x, pair.y};
      NA_UNROLL for (int h = 0; h < NA_ROWS; h += 2) {
        float *upper = dot.e + h * NA_PER_ROW + t, *lower = upper + NA_PER_ROW;
        na_multiply<SWAPPED>(upper, lower, left[f].e + 2 * h, left[f].e + 2 * h + 2, right);
      }
    }
}

// ---- sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.

template <int F, typename T>
NA_FN void na_accumulate(na_frag<float>* sum, const na_pairs<float>& left, const T* slab,
                         const na_picked& at, na_lane) {
  constexpr int TOKENS = NA_PER_ROW > 2 ? 4 : 2;  // of a lane and row, in one product
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t += TOKENS) {
    unsigned rows[NA_ROWS][4];
    NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
      NA_UNROLL for (int k = 0; k < TOKENS; k += 2)
        rows[h / 2 * 2][k + h % 2] = na_two(left.e + h * NA_PER_ROW + t + k, slab);
    unsigned eight[F];
    if (TOKENS == 2) na_load_channels<F>(eight, slab + at.mine[0], true);
    NA_UNROLL for (int f = 0; f < F; f += 2) {
      unsigned right[2][2];
      if (TOKENS > 2) na_load_square(right, slab + at.mine[(t / 2 + 1) % NA_LOOKUPS], f, true);
      NA_UNROLL for (int g = f; g < f + 2 && g < F; g++)
        NA_UNROLL for (int h = 0; h < NA_ROWS; h += 2) {
          float *upper = sum[g].e + 2 * h, *lower = upper + 2;
          if (TOKENS == 2) na_multiply(slab, upper, lower, rows[h], eight[g]);
          else na_multiply(slab, upper, lower, rows[h], right[g - f][0], right[g - f][1]);
        }
    }
  }
}
template <int F>
NA_FN void na_accumulate(na_frag<float>* sum, const na_pairs<float>& left, const float* slab,
                         const na_picked& at, na_lane me) {
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t += 2)
    NA_UNROLL for (int f = 0; f < F; f++) {
      const float right[2] = {slab[at.column[t] + f * 8 + me.row],
                              slab[at.column[t + 1] + f * 8 + me.row]};
      NA_UNROLL for (int h = 0; h < NA_ROWS; h += 2) {
        const float *upper = left.e + h * NA_PER_ROW + t, *lower = upper + NA_PER_ROW;
        na_multiply(sum[f].e + 2 * h, sum[f].e + 2 * h + 2, upper, lower, right);
      }
    }
}
