// Products by single lanes, on any GPU. A team is 4 or 8 lanes with four rows; a lane looks after one
// of them and holds of each the channels that are its own. It multiplies them with the same channels
// of a token, and the lanes add up what belongs to a pair: 4 multiply-adds for each number read.
// Windows of four neighbors overlap more than those of eight, so that less is masked than in
// products of matrices.

enum { NA_KEEPS_SEEN = 0 };   // in threadgroup memory (slab.h)
enum { NA_KEEPS_MINE = 0 };   // in registers (team.h)
enum { NA_SAME_DOTS = 0 };  // sums over lanes begin with the own one (rows.h)
enum { NA_MOST_HELD = 1 << 20 };  // ops/gpu/programs.py sees to that

// A lane is told by two numbers: its row, and which two tokens of a fragment are its own. What it
// holds of other rows and other tokens is numbered by how theirs differ from its own, bit by bit:
// then all lanes pass on the same element at the same time.
template <typename T>
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = lane % 4;
  me.column = lane / 4 * 2;
  me.wide = sizeof(T) == 4;
  return me;
}
NA_FN int na_lookup(na_lane, int) { return 0; }  // none
NA_FN int na_owner(int h, int t) { return h + t / 2 * 4; }  // of row h and token t, from here

template <typename X>
NA_FN X na_swap(X x, int owner) {
  return owner == 0 ? x : na_lane_xor(x, owner);
}

// The channel of element n of a lane's F fragments, and how many elements lie side by side.
template <int F>
NA_FN constexpr int na_run() {
  return F * NA_WIDE;
}
template <int F>
NA_FN int na_channel(na_lane me, int n) {
  return me.index * na_run<F>() + n;
}

// What belongs to the row h that a lane holds.
NA_FN float na_held(const THR float* of_rows, int h) { return na_swap(of_rows[0], h); }
template <typename ROW>
NA_FN na_home na_home_of(const THR ROW* rows, int h) {
  const int high = na_swap(int(rows[0].row >> 32), h), low = na_swap(int(rows[0].row), h);
  const int is = na_swap((rows[0].stored ? 1 : 0) + (rows[0].live ? 2 : 0), h);
  const na_home home = {(long(high) << 32) | long(uint(low)), (is & 1) != 0, (is & 2) != 0};
  return home;
}

// Tells the other half of the team where the lane's tokens lie.
NA_FN void na_share(THR na_picked& at) {
  if (NA_TEAM > 4)
    NA_UNROLL for (int e = 0; e < 2; e++) at.other[e] = na_lane_xor(at.column[e], 4);
}
NA_FN int na_place_of(const THR na_picked& at, int t) {
  return t < 2 ? at.column[t] : at.other[t - 2];
}

// By exchanges, since what a vote counts may depend on which other teams wait.
NA_FN bool na_team_any(bool x) {
  int any = x ? 1 : 0;
  NA_UNROLL for (int bits = 1; bits < NA_TEAM; bits *= 2) any |= na_lane_xor(any, bits);
  return any != 0;
}
// Teams walk at their own pace, and nothing bars fewer lanes than a simdgroup: a branch before it is
// that of large logits alone.
NA_FN void na_together() {}

// Reductions over the lanes that share a row.
NA_FN float na_row_sum(float x) { return NA_TEAM > 4 ? x + na_lane_xor(x, 4) : x; }
NA_FN float na_row_max(float x) { return NA_TEAM > 4 ? na_fmax(x, na_lane_xor(x, 4)) : x; }

// The lane's channels of a token.
template <int N, typename T>
NA_FN void na_read(THR T* to, const TGP T* from) {
  constexpr int MOST = 16 / int(sizeof(T)), BOTH = N | MOST;
  constexpr int WIDE = BOTH & -BOTH;  // the largest power of two that divides both
  NA_UNROLL for (int n = 0; n < N; n += WIDE) {
    const na_pack<T, WIDE> pack = *(const TGP na_pack<T, WIDE>*)(from + n);
    NA_UNROLL for (int i = 0; i < WIDE; i++) to[n + i] = pack.e[i];
  }
}

// dot[row, token] += left[row, channel] * slab[token, channel], over F * 8 channels.
template <int F, bool SWAPPED = false, typename T>
NA_FN void na_dot(THR na_pairs<float>& dot, const THR na_frag<T>* left, const TGP T* slab,
                  const THR na_picked& at, na_lane me) {
  constexpr int N = na_run<F>();
  NA_UNROLL for (int t = 0; t < NA_TOKENS; t++) {
    T right[N];
    na_read<N>(right, slab + na_place_of(at, t) + me.index * N);
    NA_UNROLL for (int h = 0; h < 4; h++) {
      float part = h + t / 2 == 0 ? dot.e[t] : 0.0f;
      NA_UNROLL for (int n = 0; n < N; n++)
        part = na_multiply_add(float(left[n / NA_WIDE].e[h * NA_WIDE + n % NA_WIDE]),
                               float(right[n]), part);
      if (h + t / 2 == 0) dot.e[t] = part;
      else dot.e[t % 2] += na_swap(part, na_owner(h, t));
    }
  }
}

// sum[row, channel] += left[row, token] * slab[token, channel], for F * 8 channels.
template <int F, typename T>
NA_FN void na_accumulate(THR na_frag<float>* sum, const THR na_pairs<float>& left,
                         const TGP T* slab, const THR na_picked& at, na_lane me) {
  constexpr int N = na_run<F>();
  NA_UNROLL for (int t = 0; t < NA_TOKENS; t++) {
    T right[N];
    na_read<N>(right, slab + na_place_of(at, t) + me.index * N);
    NA_UNROLL for (int h = 0; h < 4; h++) {
      const float weight = na_swap(left.e[t % 2], na_owner(h, t));
      NA_UNROLL for (int n = 0; n < N; n++) {
        THR float& entry = sum[n / NA_WIDE].e[h * NA_WIDE + n % NA_WIDE];
        entry = na_multiply_add(weight, float(right[n]), entry);
      }
    }
  }
}

// The sum of left * right over F * 8 channels of the lane's row.
template <int F, typename T>
NA_FN float na_row_dot(const THR na_frag<T>* left, const THR na_frag<T>* right, int) {
  float dot = 0.0f;
  NA_UNROLL for (int h = 0; h < 4; h++) {
    float part = 0.0f;
    NA_UNROLL for (int f = 0; f < F; f++)
      NA_UNROLL for (int e = h * NA_WIDE; e < (h + 1) * NA_WIDE; e++)
        part += float(left[f].e[e]) * float(right[f].e[e]);
    dot += na_swap(part, h);
  }
  return na_row_sum(dot);
}
