// Products of 16x8 matrices by CUDA's tensor cores: a team is a warp.

enum { NA_SECOND_LANE = 2 };  // what the numbers of two lanes that share a row differ by, besides 1
enum { NA_SAME_DOTS = 1 };    // the same bits whichever of two rows is left, queries or keys
enum { NA_MOST_HELD = 1 << 20 };

// The type in which weights are multiplied.
template <typename T>
using na_weight = T;

// A lane holds two neighbors of a matrix row, as tensor cores have them: (row, column) and
// (row, column + 1), and the same of row + 8.
template <typename T>
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = lane >> 2;
  me.column = (lane & 3) * 2;
  me.token = sizeof(T) == 2 ? lane & 7 : me.row;
  return me;
}

// All that the lanes do together is volatile: else the compiler may move it into a branch that only
// some of them take.

// ---- 16 bits: matrices of 8 tokens x 8 channels come from the slab with ldmatrix, up to four at
// once: lane i gives the address of row i % 8 of matrix i / 8.

NA_FN unsigned na_bits(__half x) { return __half_as_ushort(x); }
NA_FN unsigned na_bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
template <typename T>
NA_FN unsigned na_pair(const T* left, int h) {
  return na_bits(left[2 * h]) | na_bits(left[2 * h + 1]) << 16;
}

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

// The matrices of channels 8 f, 8 (f + 1), ... of the tokens that the lanes point to.
template <int F, typename T>
NA_FN void na_load_channels(unsigned* to, const T* row, bool transposed) {
  const int matrix = (threadIdx.x >> 3) & 3;
  NA_UNROLL for (int f = 0; f < F; f += 4) {
    if (F - f >= 4) na_load_matrices<4>(to + f, row + (f + matrix) * 8, transposed);
    else
      NA_UNROLL for (int g = f; g < F; g++) na_load_matrices<1>(to + g, row + g * 8, transposed);
  }
}

#define NA_MULTIPLY(TYPE, NAME)                                                              \
  NA_FN void na_multiply(float* sum, const TYPE* left, unsigned right) {                     \
    asm volatile(                                                                            \
        "mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME ".f32 "                        \
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                                \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                             \
        : "r"(na_pair(left, 0)), "r"(na_pair(left, 1)), "r"(right));                         \
  }                                                                                          \
  NA_FN void na_multiply_two(float* sum, const TYPE* left, const TYPE* next,                 \
                             const unsigned* right) {                                        \
    asm volatile(                                                                            \
        "mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                       \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                             \
        : "r"(na_pair(left, 0)), "r"(na_pair(left, 1)), "r"(na_pair(next, 0)),               \
          "r"(na_pair(next, 1)), "r"(right[0]), "r"(right[1]));                              \
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
NA_FN void na_multiply_tf32(float* sum, const unsigned* a, const unsigned* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The two numbers of a lane are its columns 2 i and 2 i + 1 here, i and i + 4 to the tensor core:
// for both operands alike, so that the sum over them is the same. SWAPPED has the sums of the operands
// in each other's places, to the last bit.
template <bool SWAPPED = false>
NA_FN void na_multiply(float* sum, const float* left, const float* right) {
  unsigned high_a[4], low_a[4], high_b[2], low_b[2];
  na_split<4>(left, high_a, low_a);
  na_split<2>(right, high_b, low_b);
  if (SWAPPED) na_multiply_tf32(sum, high_a, low_b);
  na_multiply_tf32(sum, low_a, high_b);
  if (!SWAPPED) na_multiply_tf32(sum, high_a, low_b);
  na_multiply_tf32(sum, high_a, high_b);
}

// ---- dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.

template <int F, bool SWAPPED = false, typename T>
NA_FN void na_dot(na_pairs<float>& dot, const na_frag<T>* left, const T* slab,
                  const na_picked& at, na_lane) {
  unsigned right[F];
  na_load_channels<F>(right, slab + at.mine, false);
  NA_UNROLL for (int f = 0; f + 1 < F; f += 2)
    na_multiply_two(dot.e, left[f].e, left[f + 1].e, right + f);
  if (F % 2) na_multiply(dot.e, left[F - 1].e, right[F - 1]);
}
template <int F, bool SWAPPED = false>
NA_FN void na_dot(na_pairs<float>& dot, const na_frag<float>* left, const float* slab,
                  const na_picked& at, na_lane me) {
  NA_UNROLL for (int f = 0; f < F; f++) {
    const float2 pair =
        *reinterpret_cast<const float2*>(slab + at.mine + f * 8 + me.column);
    const float right[2] = {pair.x, pair.y};
    na_multiply<SWAPPED>(dot.e, left[f].e, right);
  }
}

// ---- sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.

template <int F, typename T>
NA_FN void na_accumulate(na_frag<float>* sum, const na_pairs<T>& left, const T* slab,
                         const na_picked& at, na_lane) {
  unsigned right[F];
  na_load_channels<F>(right, slab + at.mine, true);
  NA_UNROLL for (int f = 0; f < F; f++) na_multiply(sum[f].e, left.e, right[f]);
}
template <int F>
NA_FN void na_accumulate(na_frag<float>* sum, const na_pairs<float>& left, const float* slab,
                         const na_picked& at, na_lane me) {
  NA_UNROLL for (int f = 0; f < F; f++) {
    const float right[2] = {slab[at.column[0] + f * 8 + me.row],
                            slab[at.column[1] + f * 8 + me.row]};
    na_multiply(sum[f].e, left.e, right);
  }
}
