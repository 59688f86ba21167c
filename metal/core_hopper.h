// Products of 64x64 matrices by the tensor cores of a Hopper GPU (wgmma): a team is four warps with 64
// rows, and 64 tokens at a time, of which each warp has 16 rows and all tokens. The right side comes
// from threadgroup memory, past the registers, once for all four.

enum { NA_SECOND_LANE = 2 };  // what the numbers of two lanes that share a row differ by, besides 1
enum { NA_KEEPS_SEEN = 1 };   // in threadgroup memory (slab.h)
enum { NA_KEEPS_MINE = 0 };   // in registers (team.h)
enum { NA_SAME_DOTS = 1 };    // the same bits whichever of two rows is left, queries or keys
enum { NA_MOST_HELD = 160 };

// Threadgroups run about in the order of their numbers. Here all of a head come one after the other, not
// all heads of a tile: those that run at once want the same keys, which stay in the second cache.
struct na_turn {
  unsigned x;
};
NA_FN na_turn na_head_by_head(unsigned heads) {
  const unsigned items = gridDim.x / heads, head = blockIdx.x / items;
  return {(blockIdx.x - head * items) * heads + head};
}
#undef threadgroup_position_in_grid
#define threadgroup_position_in_grid na_head_by_head(params[NA_KV_HEADS])

// A lane holds two neighbors of every eight of a matrix row, and the same of row + 8.
template <typename T>
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = lane / 32 * 16 + (lane >> 2 & 7);
  me.column = (lane & 3) * 2;
  me.wide = false;
  return me;
}

// Tokens come in eights that lie side by side: where the first two of them begin tells how far one is
// from the next.
NA_FN int na_lookup(na_lane, int i) { return i * 8; }

// Sixteen numbers of each of 64 rows, the left side of a product: from a fragment of rows or from pairs,
// which a lane holds alike.
template <typename X, typename T>
NA_FN void na_sixteen(unsigned (&left)[4], const X* e, int k, const T* slab) {
  NA_UNROLL for (int i = 0; i < 4; i++)
    left[i] = na_two(e + i % 2 * NA_PER_ROW + 4 * k + i / 2 * 2, slab);
}

// What all lanes of a warp know alike, as the compiler is told so: then it is computed once for all.
NA_FN int na_uniform(int x) { return __shfl_sync(~0u, x, 0); }

// From eight tokens of a fragment to the next, in tokens.
NA_FN int na_step(const na_picked& at) { return na_uniform((at.mine[1] - at.mine[0]) / 8); }

// Where the right side lies, for wgmma: from `slab` on, `deep` eights of elements from eight rows of it
// to the next ones, and `wide` to the next eight columns. Eights may be added to it.
NA_FN unsigned long na_right(const void* slab, int deep, int wide) {
  const int at = na_uniform(int(unsigned(__cvta_generic_to_shared(slab)) >> 4));
  return (unsigned long)(wide) << 32 | unsigned(deep << 16 | at);
}

// sum[64 rows][64] += left[64 rows][16] * right[16][64]; TRANSPOSED: rows of the right side are tokens.
#define NA_FOUR(g) "+f"(sum[2 * g]), "+f"(sum[2 * g + 1]), "+f"(sum[16 + 2 * g]), "+f"(sum[17 + 2 * g])
#define NA_MULTIPLY(TYPE, NAME)                                                                     \
  template <int TRANSPOSED>                                                                         \
  NA_FN void na_multiply(const TYPE*, float* sum, const unsigned (&left)[4], unsigned long right) { \
    asm volatile(                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " "                             \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "         \
        "{%32, %33, %34, %35}, %36, 1, 1, 1, %37;"                                                  \
        : NA_FOUR(0), NA_FOUR(1), NA_FOUR(2), NA_FOUR(3), NA_FOUR(4), NA_FOUR(5), NA_FOUR(6),       \
          NA_FOUR(7)                                                                                \
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "n"(TRANSPOSED));     \
  }
NA_MULTIPLY(__half, "f16")
NA_MULTIPLY(__nv_bfloat16, "bf16")

NA_FN void na_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
NA_FN void na_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Products go on while the warps do something else: what they read stays until they are waited for.
template <int N, template <typename> class X>
NA_FN void na_settle(X<float>* sum) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  NA_UNROLL for (int n = 0; n < N; n++)
    NA_UNROLL for (int e = 0; e < 32; e++) asm volatile("" : "+f"(sum[n].e[e])::"memory");
}

// ---- dot[row, token] += left[row, channel] * slab[token, channel], over F * 64 channels.

template <int F, bool SWAPPED = false, typename T>
NA_FN void na_dot(na_pairs<float>& dot, const na_frag<T>* left, const T* slab, const na_picked& at,
                  na_lane) {
  const unsigned long right = na_right(slab + at.mine[0], NA_PLANE, na_step(at));
  na_begin();
  NA_UNROLL for (int k = 0; k < F * 4; k++) {
    unsigned rows[4];
    na_sixteen(rows, left[k / 4].e, k % 4, slab);
    na_multiply<0>(slab, dot.e, rows, right + k * 2 * NA_PLANE);
  }
  na_commit();
}

// ---- sum[row, channel] += left[row, token] * slab[token, channel], for F * 64 channels.

template <int F, typename T>
NA_FN void na_accumulate(na_frag<float>* sum, const na_pairs<float>& left, const T* slab,
                         const na_picked& at, na_lane) {
  const int step = na_step(at);
  const unsigned long right = na_right(slab + at.mine[0], step, NA_PLANE);
  unsigned rows[4][4];
  NA_UNROLL for (int k = 0; k < 4; k++) na_sixteen(rows[k], left.e, k, slab);
  na_begin();
  NA_UNROLL for (int k = 0; k < 4; k++)
    NA_UNROLL for (int f = 0; f < F; f++)
      na_multiply<1>(slab, sum[f].e, rows[k], right + (k * 2 * step + f * 8 * NA_PLANE));
  na_commit();
}
