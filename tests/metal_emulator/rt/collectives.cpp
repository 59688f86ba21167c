// What a simdgroup does together: reductions, prefix sums, shuffles, votes, simdgroup barriers.
#include "runtime.h"
#include "scalar.h"

#include <cstring>

namespace {
enum Op : u32 {
  SUM, PRODUCT, MIN, MAX, AND, OR, XOR,
  PREFIX_SUM = 8, PREFIX_SUM_EXCLUSIVE, PREFIX_PRODUCT, PREFIX_PRODUCT_EXCLUSIVE
};
enum Mode : u32 { LANE, BY_XOR, UP, DOWN, ROTATE_UP, ROTATE_DOWN, FIRST };

double combine(u32 op, u32 type, double a, double b) {
  switch (op) {
    case SUM: return is_float(type) ? (double)((float)a + (float)b) : a + b;
    case PRODUCT: return is_float(type) ? (double)((float)a * (float)b) : a * b;
    case MIN: return b < a ? b : a;
    case MAX: return b > a ? b : a;
    case AND: return (double)((i64)a & (i64)b);
    case OR: return (double)((i64)a | (i64)b);
    default: return (double)((i64)a ^ (i64)b);
  }
}

// Sums in the order of a butterfly; lanes that are absent drop out.
void butterfly(const Request& r, double* values, bool* present) {
  for (u32 step = 1; step < r.width; step <<= 1) {
    double next[LANES];
    bool any[LANES];
    for (u32 i = 0; i < r.width; i++) {
      u32 j = i ^ step, low = i < j ? i : j, high = i < j ? j : i;
      any[i] = present[i] || present[j];
      next[i] = present[i] && present[j] ? combine(r.op, r.type, values[low], values[high])
                                         : values[present[i] ? i : j];
    }
    memcpy(values, next, sizeof next);
    memcpy(present, any, sizeof any);
  }
}

void prefix(const Request& r, double* values, const bool* present) {
  bool product = r.op >= PREFIX_PRODUCT;
  bool exclusive = r.op == PREFIX_SUM_EXCLUSIVE || r.op == PREFIX_PRODUCT_EXCLUSIVE;
  double total = product ? 1 : 0;
  for (u32 i = 0; i < r.width; i++) {
    if (!present[i]) continue;
    double before = total;
    total = combine(product ? PRODUCT : SUM, r.type, total, values[i]);
    values[i] = exclusive ? before : total;
  }
}

void reduce(Fiber** by_lane, const Request& r) {
  for (u32 base = 0; base < LANES; base += r.width)
    for (u32 e = 0; e < r.count; e++) {
      double values[LANES] = {};
      bool present[LANES] = {};
      for (u32 i = 0; i < r.width; i++)
        if (Fiber* f = by_lane[base + i]) {
          present[i] = true;
          values[i] = load_number(r.type, f->request.value, e);
        }
      if (r.op < PREFIX_SUM) butterfly(r, values, present);
      else prefix(r, values, present);
      for (u32 i = 0; i < r.width; i++)
        if (Fiber* f = by_lane[base + i]) store_number(r.type, f->request.value, e, values[i]);
    }
}

int source_lane(const Request& r, int lane, u32 first_active) {
  int width = (int)r.width;
  switch (r.op) {
    case LANE: return r.source;
    case BY_XOR: return lane ^ r.source;
    case UP: return lane - r.source;
    case DOWN: return lane + r.source;
    case ROTATE_UP: return (lane - r.source % width + width) % width;
    case ROTATE_DOWN: return (lane + r.source) % width;
    default: return (int)first_active;
  }
}

void shuffle(Fiber** by_lane, Fiber** lanes, u32 count) {
  u8 before[LANES][64];
  for (u32 i = 0; i < count; i++)
    memcpy(before[lanes[i]->at.lane], lanes[i]->request.value, lanes[i]->request.count);
  for (u32 i = 0; i < count; i++) {
    Fiber* f = lanes[i];
    const Request& r = f->request;
    int base = (int)(f->at.lane / r.width * r.width);
    int source = source_lane(r, (int)f->at.lane - base, lanes[0]->at.lane);
    bool inside = source >= 0 && source < (int)r.width;
    if (inside && by_lane[base + source]) {
      memcpy(r.value, before[base + source], r.count);
    } else if (inside) {
      report("simd-shuffle-inactive-lane",
             format("shuffle reads inactive lane %d", base + source), {r.pc}, f);
      memset(r.value, 0xff, r.count);
    } else if (r.op == LANE || r.op == BY_XOR) {
      report("simd-shuffle-bad-lane",
             format("shuffle source lane %d is outside the simdgroup", source), {r.pc}, f);
      memset(r.value, 0xff, r.count);
    }  // shuffle_up and shuffle_down leave the lanes without a source as they were
  }
}

// Every lane learns the votes of its block of `width` lanes.
void vote(Fiber** lanes, u32 count) {
  u64 votes = 0;
  for (u32 i = 0; i < count; i++)
    if (lanes[i]->request.op) votes |= 1ull << lanes[i]->at.lane;
  for (u32 i = 0; i < count; i++) {
    Request& r = lanes[i]->request;
    r.result = (votes >> lanes[i]->at.lane / r.width * r.width) & ((1ull << r.width) - 1);
  }
}
}  // namespace

// Lanes of a collective that ask nothing of lanes outside their own block of this many.
u32 block_of(const Request& r) {
  if (r.kind == Collective::Shuffle && r.op == BY_XOR) {
    u32 block = 1;
    while (block <= (u32)r.source) block *= 2;
    return block;
  }
  bool of_blocks = r.kind == Collective::Reduce || r.kind == Collective::Shuffle ||
                   r.kind == Collective::Ballot;
  return of_blocks ? r.width : LANES;
}

void complete_collective(Fiber** lanes, u32 count) {
  Counts& counts = launch->counts;
  const Request& r = lanes[0]->request;
  Fiber* by_lane[LANES] = {};
  for (u32 i = 0; i < count; i++) by_lane[lanes[i]->at.lane] = lanes[i];
  switch (r.kind) {
    case Collective::Reduce: counts.reductions++; return reduce(by_lane, r);
    case Collective::Shuffle: counts.shuffles++; return shuffle(by_lane, lanes, count);
    case Collective::Ballot: counts.votes++; return vote(lanes, count);
    case Collective::Multiply: counts.matrix_multiplies++; return multiply_matrices(lanes, count);
    case Collective::Tensor: counts.tensor_multiplies++; return multiply_tensors(lanes, count);
    case Collective::Barrier:
      counts.simdgroup_barriers++;
      return synchronise_simdgroup(lanes[0]->at.simdgroup, r.flags);
    case Collective::Meeting:
      if (count < LANES)
        report("simdgroup-matrix-divergent",
               "simdgroup_load or simdgroup_store executed by a partial simdgroup", {r.pc},
               lanes[0]);
  }
}

EXPORT void __msl_barrier(u32 flags, u32 scope, u32 site) {
  current->request.flags = flags;
  if (scope == 0) return wait_for(State::AtBarrier, Collective::Barrier, site, CALLER_PC);
  Collective kind = scope == 1 ? Collective::Barrier : Collective::Meeting;
  wait_for(State::AtCollective, kind, site, CALLER_PC);
}

EXPORT void __msl_reduce(void* value, u32 op, u32 type, u32 count, u32 width, u32 site) {
  Request& r = current->request;
  r.value = value, r.op = op, r.type = type, r.count = count, r.width = width;
  wait_for(State::AtCollective, Collective::Reduce, site, CALLER_PC);
}

EXPORT void __msl_shuffle(void* value, u32 bytes, int source, u32 mode, u32 width, u32 site) {
  Request& r = current->request;
  r.value = value, r.count = bytes, r.source = source, r.op = mode, r.width = width;
  wait_for(State::AtCollective, Collective::Shuffle, site, CALLER_PC);
}

EXPORT u64 __msl_ballot(u32 predicate, u32 width, u32 site) {
  Fiber* self = current;
  self->request.op = predicate, self->request.width = width;
  wait_for(State::AtCollective, Collective::Ballot, site, CALLER_PC);
  return self->request.result;
}

EXPORT u32 __msl_lane() { return current->at.lane; }

EXPORT void __msl_fence(u32 flags) { synchronise_simdgroup(current->at.simdgroup, flags); }
