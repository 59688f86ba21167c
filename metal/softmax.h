// Softmax over keys that come a fragment at a time: in three steps, each of which costs what it must.
//
// Weights are counted from a reference near the largest logit so far, in powers of 2. Most fragments
// have no logit that is far above it: one look tells (na_exceeds), and nothing is rescaled.

struct na_softmax {
  float row_max[NA_ROWS];   // the reference of each row: one of its logits, 0 before the first
  float row_sum[NA_ROWS];   // of the weights so far, those of the lane's tokens
  float headroom[NA_ROWS];  // the largest logit that is near enough
};

#define NA_SLACK 8.0f  // weights may reach 2^8

NA_FN na_softmax na_softmax_of_none() {
  na_softmax softmax;
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    softmax.row_max[h] = softmax.row_sum[h] = 0.0f;
    softmax.headroom[h] = NA_LOWEST;
  }
  return softmax;
}

NA_FN float na_largest(const THR na_pairs<float>& s, int h) {
  constexpr int APART = NA_PER_ROW < 4 ? NA_PER_ROW : 4;  // that none waits for all before it
  float largest[APART];
  NA_UNROLL for (int t = 0; t < NA_PER_ROW; t++) {
    const float one = s.e[h * NA_PER_ROW + t];
    largest[t % APART] = t < APART ? one : na_fmax(largest[t % APART], one);
  }
  NA_UNROLL for (int t = 1; t < APART; t++) largest[0] = na_fmax(largest[0], largest[t]);
  return largest[0];
}

// Whether a logit of the team is too far above the reference of its row.
NA_FN bool na_exceeds(const THR na_softmax& softmax, const THR na_pairs<float>& s) {
  bool higher = false;
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++)
    higher |= na_largest(s, h) > softmax.headroom[h];
  return na_team_any(higher);
}

// Then the largest logit of such a row becomes its reference. Selections, no branch: lanes exchange
// for the next row, and for what they hold of each other's.
template <int F>
NA_FN void na_rescale(THR na_softmax& softmax, const THR na_pairs<float>& s,
                      THR na_frag<float>* acc_o) {
  float shrink[NA_ROWS];
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    const float largest = na_row_max(na_largest(s, h));
    const float shrunk = na_exp2(na_fmin(softmax.row_max[h] - largest, 0.0f));
    const bool higher = largest > softmax.headroom[h];
    shrink[h] = higher ? shrunk : 1.0f;
    softmax.row_max[h] = higher ? largest : softmax.row_max[h];
    softmax.headroom[h] = higher ? largest + NA_SLACK : softmax.headroom[h];
    softmax.row_sum[h] *= shrink[h];
  }
  na_scale_rows<F>(acc_o, shrink);
}

// Logits become weights.
NA_FN void na_weigh(THR na_softmax& softmax, THR na_pairs<float>& s) {
  NA_UNROLL for (int h = 0; h < NA_ROWS; h++) {
    float sum = 0.0f;
    NA_UNROLL for (int e = h * NA_PER_ROW; e < (h + 1) * NA_PER_ROW; e++) {
      s.e[e] = na_exp2(s.e[e] - softmax.row_max[h]);
      sum += s.e[e];
    }
    softmax.row_sum[h] += sum;
  }
}
