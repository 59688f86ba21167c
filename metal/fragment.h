// Fragments: the numbers that the lanes of a team share out among themselves. A team computes a few
// rows (queries; in the pass over keys, keys) against NA_TOKENS tokens at a time. How many lanes it
// has and who multiplies what is up to a core, one of core_*.h; metal.Core has the numbers, and
// apart from products and sums over lanes the kernels are the same for all.

struct na_lane {
  int index;   // in its part of a team
  int part;    // whose channels it has (parts.h)
  int row;     // the first row that it looks after; the next ones are 8 apart
  int column;  // the first of its tokens of a fragment
  bool wide;   // whether elements are float32, for a core that looks them up otherwise
};

// A number for each pair of row and token, such as logits. A lane has NA_PER_ROW tokens of each of
// its NA_ROWS rows.
enum { NA_PAIRS = NA_ROWS * NA_PER_ROW };
template <typename T>
struct na_pairs {
  T e[NA_PAIRS];
};
NA_FN constexpr int na_row_of(int e) { return e / NA_PER_ROW; }
NA_FN constexpr int na_token_of(int e) { return e % NA_PER_ROW; }

// How far the lane's token t lies behind its first in the fragment: NA_BESIDE of them are neighbors,
// and four lanes have others before its next ones.
NA_FN constexpr int na_behind(int t) { return t % NA_BESIDE + t / NA_BESIDE * (4 * NA_BESIDE); }

// NA_DEPTH channels of all rows, such as queries: element e is of channel e % NA_WIDE and of row
// e / NA_WIDE of those that the lane holds, which may be more than it looks after.
template <typename T>
struct na_frag {
  T e[NA_HELD * NA_WIDE];
};

// Where rows are long a team is several simdgroups, its parts: each has its own channels of all rows.
enum { NA_TEAM_THREADS = NA_TEAM * NA_PARTS };

// How many of these a part of a row of D channels takes; the channels of all parts; and a part's first.
template <int D>
NA_FN constexpr int na_frags() {
  return (D + NA_DEPTH * NA_PARTS - 1) / (NA_DEPTH * NA_PARTS);
}
template <int D>
NA_FN constexpr int na_padded() {
  return na_frags<D>() * NA_DEPTH * NA_PARTS;
}
template <int F>
NA_FN int na_first(na_lane me) {
  return me.part * (F * NA_DEPTH);
}

// Where in a slab the tokens of a fragment lie.
struct na_picked {
  int column[NA_PER_ROW];  // mine
  int other[2];            // those of the other half of a team of eight lanes
  int mine[NA_LOOKUPS];    // those that I look up for products of matrices (na_lookup)
};

// Waits for products whose sums these are. Most cores have them at once.
template <int N, typename X>
NA_FN void na_settle(THR X*) {}

// Where a row lies in an array.
struct na_home {
  long row;
  bool stored;  // it is an entry of the array
  bool live;    // ... and of its sample
};

enum { NA_PAD_BYTES = 16 };  // between the rows of a slab, against bank conflicts
