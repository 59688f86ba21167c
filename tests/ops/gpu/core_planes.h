// What core_hopper.h multiplies, in words that the emulator knows: a team of one simdgroup with 16 rows
// and 64 tokens at a time, which come from slabs in planes of eight channels.

enum { NA_SECOND_LANE = 2 };
enum { NA_KEEPS_SEEN = 1 };   // in threadgroup memory (slab.h)
enum { NA_KEEPS_MINE = 0 };   // in registers (team.h)
enum { NA_SAME_DOTS = 1 };
enum { NA_MOST_HELD = 160 };

template <typename T>
NA_FN na_lane na_lane_of(int lane) {
  na_lane me;
  me.index = lane;
  me.row = lane >> 2;
  me.column = (lane & 3) * 2;
  me.wide = false;
  return me;
}

NA_FN int na_lookup(na_lane, int i) { return i * 8; }

NA_FN float na_row_sum(float x);

// Where a lane's number n of a row, of 64 tokens or channels, lies among them.
NA_FN int na_nth(int column, int n) { return n % 2 + n / 2 * 8 + column; }

NA_FN int na_token_at(const na_picked at, int token) {
  return at.mine[0] + token / 8 * (at.mine[1] - at.mine[0]) + token % 8 * 8;
}

NA_FN int na_channel_at(int channel) { return channel / 8 * NA_PLANE * 8 + channel % 8; }

template <int F, bool SWAPPED = false, typename T>
NA_FN void na_dot(THR na_pairs<float>& dot, const THR na_frag<T>* left, const TGP T* slab,
                  const na_picked at, na_lane me) {
  simdgroup_barrier(mem_flags::mem_none);
  for (int token = 0; token < 64; token++)
    for (int h = 0; h < 2; h++) {
      float sum = 0.0f;
      for (int n = 0; n < F * 16; n++) {
        const int place = na_token_at(at, token) + na_channel_at(n / 16 * 64 + na_nth(me.column, n % 16));
        sum = na_multiply_add(float(left[n / 16].e[h * 16 + n % 16]), float(slab[place]), sum);
      }
      sum = na_row_sum(sum);
      if (token % 8 / 2 * 2 == me.column) dot.e[h * 16 + token / 8 * 2 + token % 2] += sum;
      simdgroup_barrier(mem_flags::mem_none);
    }
}

template <int F, typename T>
NA_FN void na_accumulate(THR na_frag<float>* sum, const THR na_pairs<float>& left, const TGP T* slab,
                         const na_picked at, na_lane me) {
  simdgroup_barrier(mem_flags::mem_none);
  for (int t = 0; t < 16; t++)
    for (int lane = 0; lane < 4; lane++) {
      const int place = na_token_at(at, na_nth(me.column ^ lane * 2, t));
      for (int h = 0; h < 2; h++) {
        const float weight = float(T(na_lane_xor(left.e[h * 16 + t], lane)));
        for (int n = 0; n < F * 16; n++)
          sum[n / 16].e[h * 16 + n % 16] +=
              weight * float(slab[place + na_channel_at(n / 16 * 64 + na_nth(me.column, n % 16))]);
      }
    }
}
