// The window algebra of one axis, in closed form: which keys a query sees and which queries see a key.
// Plain integer functions, shared by the kernels (Metal, CUDA) and the compiled CPU tier. Mirrors
// Neighborhood.window in ops/neighborhood.py.
//
// Everything is in ranks: with dilation d the tokens i of equal i % d form a class, i / d is the
// rank of a token inside its class and a class is an undilated axis. Halves are shifts: GPUs have no
// division of integers.
#ifndef NATTEN_ZOO_WINDOW_H
#define NATTEN_ZOO_WINDOW_H

#ifndef NA_FN  // on a CPU; GPUs have arithmetic.h
#define NA_FN static inline
NA_FN int na_quotient(int n, int d) { return n / d; }
#endif

// Half-open: first, first + 1, ..., last - 1.
struct na_span {
  int first;
  int last;
};

NA_FN int na_min(int a, int b) { return a < b ? a : b; }
NA_FN int na_max(int a, int b) { return a > b ? a : b; }
NA_FN int na_clamp(int x, int low, int high) { return na_max(low, na_min(x, high)); }
NA_FN int na_ceil_div(int a, int b) { return na_quotient(a + b - 1, b); }  // a > -b

// Tokens of class `group` among `length` tokens.
NA_FN int na_class_size(int length, int dilation, int group) {
  return na_ceil_div(length - group, dilation);
}

// The keys that the query of rank `query` sees in a class of `length` tokens. `window_stride`
// queries share the window of their leader: the middle one, on a causal axis the last.
NA_FN na_span na_keys_of(int query, int length, int window, int window_stride, int causal) {
  int leader = query;
  if (window_stride > 1) {
    leader = na_quotient(query, window_stride) * window_stride;
    leader += causal ? window_stride - 1 : window_stride >> 1;
    leader = na_min(leader, length - 1);
  }
  na_span keys;
  if (causal) {
    keys.first = na_max(leader - window + 1, 0);
    keys.last = query + 1;
  } else {
    keys.first = na_max(na_min(leader - (window >> 1), length - window), 0);
    keys.last = na_min(keys.first + window, length);
  }
  return keys;
}

// The queries that see the key of rank `key`: the inverse of na_keys_of. It is an interval, because
// the windows' ends move monotonically with the query.
NA_FN na_span na_queries_of(int key, int length, int window, int window_stride, int causal) {
  // The leaders that see the key: [first, last), the ends of the axis open.
  const int middle = window >> 1;
  const int first = causal ? key : key < window ? 0 : key - window + 1 + middle;
  const int last = causal ? key + window : key >= length - window ? length : key + middle + 1;
  na_span queries;
  queries.first = first;
  queries.last = na_min(last, length);
  if (window_stride > 1) {
    const int offset = causal ? window_stride - 1 : window_stride >> 1;
    if (!causal)
      queries.first = na_ceil_div(na_max(first - offset, 0), window_stride) * window_stride;
    if (last < length) {
      const int groups = last - 1 < offset ? 0 : na_quotient(last - 1 - offset, window_stride) + 1;
      queries.last = na_min(groups * window_stride, length);
    }
  }
  return queries;
}

#endif
