// Fragments: the numbers that the lanes of a team share out among themselves. A team computes a few
// rows (queries; in the pass over keys, keys) against NA_TOKENS tokens at a time. How many lanes it
// has and who multiplies what is up to a core, one of core_*.h; metal.Core has the numbers, and
// apart from products and sums over lanes the kernels are the same for all.

struct na_lane {
  int index;   // in its team
  int row;     // the first row that it looks after; the next ones are 8 apart
  int column;  // the first of its two tokens of a fragment
  int token;   // the token of a fragment that it looks up, if products of matrices need it
};

// A number for each pair of row and token, such as logits: element e is of token column + e % 2 and
// the lane's row e / 2.
template <typename T>
struct na_pairs {
  T e[2 * NA_ROWS];
};

// Eight channels of all rows, such as queries: element e is of channel e % NA_WIDE and of row
// e / NA_WIDE of those that the lane holds, which may be more than it looks after.
template <typename T>
struct na_frag {
  T e[NA_HELD * NA_WIDE];
};

// Where in a slab the tokens of a fragment lie.
struct na_picked {
  int column[2];  // my two
  int other[2];   // those of the other half of a team of eight lanes
  int mine;       // the one that I look up
};

// Where a row lies in an array.
struct na_home {
  long row;
  bool stored;  // it is an entry of the array
  bool live;    // ... and of its sample
};

enum { NA_PAD_BYTES = 16 };  // between the rows of a slab, against bank conflicts
