// Teams of several simdgroups, for rows of so many channels that the registers of one would not hold
// them: each has a part of the channels of every row and of every sum. A product of rows is a sum over
// all channels, so the parts add up theirs by way of threadgroup memory. All threads of a threadgroup
// wait for that, since there is no barrier for fewer, and so its teams walk in step.

// Numbers of threadgroup memory in which each thread leaves what two arrays of pairs hold. There are two
// such halves: while one is read the other is written.
enum { NA_HALF = NA_PARTS > 1 ? 2 * NA_PAIRS * NA_THREADS : 1 };

// Sums over a part's channels become those over all, added in one order: all parts get the same bits.
// `turn` tells which half is next.
template <int COUNT>
NA_FN void na_add_parts(THR float* x, TGP float* memory, THR int& turn, uint thread_index,
                        na_lane me) {
  if (NA_PARTS > 1) {
    TGP float* own = memory + turn + thread_index;
    NA_UNROLL for (int i = 0; i < COUNT; i++) own[i * NA_THREADS] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const TGP float* first = own - me.part * NA_TEAM;
    NA_UNROLL for (int i = 0; i < COUNT; i++) {
      x[i] = first[i * NA_THREADS];
      NA_UNROLL for (int part = 1; part < NA_PARTS; part++)
        x[i] += first[i * NA_THREADS + part * NA_TEAM];
    }
    turn = NA_HALF - turn;
  }
}

// The same of two at once.
NA_FN void na_add_parts(THR na_pairs<float>& x, THR na_pairs<float>& y, TGP float* memory,
                        THR int& turn, uint thread_index, na_lane me) {
  float both[2 * NA_PAIRS];
  NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
    both[e] = x.e[e];
    both[NA_PAIRS + e] = y.e[e];
  }
  na_add_parts<2 * NA_PAIRS>(both, memory, turn, thread_index, me);
  NA_UNROLL for (int e = 0; e < NA_PAIRS; e++) {
    x.e[e] = both[e];
    y.e[e] = both[NA_PAIRS + e];
  }
}

// Has a team go as far as the one of its threadgroup that goes farthest. What is beyond its own tokens
// is masked; if it has none it reads the first of the slab.
template <typename SHAPE>
NA_FN void na_keep_pace(THR na_walk& walk, TGP na_tour& tour, uint thread_index, uint threads) {
  if (NA_PARTS > 1) {
    const int team = int(thread_index) / NA_TEAM_THREADS;
    if (thread_index % NA_TEAM_THREADS == 0) {
      tour.depth[team] = walk.depth;
      tour.width[team] = walk.width;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    NA_ROLLED for (int i = 0; i < int(threads) / NA_TEAM_THREADS; i++) {
      walk.to_depth = na_max(walk.to_depth, tour.depth[i]);
      walk.to_width = na_max(walk.to_width, tour.width[i]);
    }
    if (walk.depth != walk.to_depth || walk.width != walk.to_width) walk.open = false;
    if (walk.depth == 0 || walk.width == 0) {
      walk.depth = walk.width = walk.length = 1;
      walk.first = walk.gap = 0;
      walk.box.high[SHAPE::AXIS] = walk.box.low[SHAPE::AXIS];
    }
  }
}
