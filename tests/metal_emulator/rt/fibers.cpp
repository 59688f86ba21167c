// Threads as fibers: a lane runs until it waits, then hands over to the next lane of its simdgroup.
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

// Saves the callee-saved registers on the stack of the caller and continues on another stack.
asm(R"(
.text
.type msl_switch,@function
msl_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void msl_switch(void** save, void* load) __attribute__((visibility("hidden")));

Fiber* current = nullptr;

namespace {
constexpr size_t STACK_BYTES = 256 << 10;
u8* stacks = nullptr;
size_t stack_count = 0;

void* scheduler_stack_pointer;
Fiber* queue[LANES];  // the lanes of this step, in the order they run
u32 queued, position;
u64 random_state;

void back_to_scheduler() {
  Fiber* self = current;
  current = nullptr;
  msl_switch(&self->stack_pointer, scheduler_stack_pointer);
}

void yield() {
  if (++position == queued) return back_to_scheduler();
  Fiber* self = current;
  current = queue[position];
  msl_switch(&self->stack_pointer, current->stack_pointer);
}

void fiber_main() {
  void* arguments[64];
  for (u32 i = 0; i < launch->buffer_count; i++) {
    const Buffer& b = launch->buffers[i];
    arguments[i] = (void*)(b.address + b.start);
  }
  launch->entry(arguments, &current->at);
  current->state = State::Done;
  for (;;) yield();
}

void run_ready_lanes(Fiber* lanes, u32 count) {
  queued = position = 0;
  for (u32 i = 0; i < count; i++)
    if (lanes[i].state == State::Ready) queue[queued++] = lanes + i;
  if (launch->order == 1) std::reverse(queue, queue + queued);
  if (launch->order == 2)
    for (u32 i = queued - 1; i > 0; i--) std::swap(queue[i], queue[random_below(i + 1)]);
  current = queue[0];
  msl_switch(&scheduler_stack_pointer, current->stack_pointer);
}

// Whether each lane has the others of its block with it: then nobody asks for lanes that are elsewhere.
bool in_whole_blocks(Fiber** group, u32 count) {
  u32 present = 0;
  for (u32 i = 0; i < count; i++) present |= 1u << group[i]->at.lane;
  return std::all_of(group, group + count, [present](const Fiber* f) {
    u32 block = block_of(f->request);
    u32 all = block < LANES ? (1u << block) - 1 : ~0u;
    return (present >> f->at.lane / block * block & all) == all;
  });
}

u32 gather_at(u32 site, Fiber* lanes, u32 count, Fiber** group) {
  u32 n = 0;
  for (u32 i = 0; i < count; i++)
    if (lanes[i].state == State::AtCollective && lanes[i].request.site == site)
      group[n++] = lanes + i;
  return n;
}

// The lanes waiting at one collective. Where lanes diverged those go on that need nobody else, in the
// launch's order of lanes: by the place in the text, backward, or at random; else the first in the text.
u32 gather_waiting(Fiber* lanes, u32 count, Fiber** group, bool& divergent) {
  u32 sites[LANES], n = 0;
  for (u32 i = 0; i < count; i++) {
    divergent |= lanes[i].state == State::AtBarrier;
    u32 site = lanes[i].request.site;
    if (lanes[i].state == State::AtCollective && std::find(sites, sites + n, site) == sites + n)
      sites[n++] = site;
  }
  if (n < 2) return n ? gather_at(sites[0], lanes, count, group) : 0;
  divergent = true;
  auto before = [](u32 a, u32 b) { return (a & 0xfffff) < (b & 0xfffff); };
  std::sort(sites, sites + n, before);
  u32* end = std::stable_partition(sites, sites + n, [&](u32 site) {
    return in_whole_blocks(group, gather_at(site, lanes, count, group));
  });
  u32 whole = (u32)(end - sites), picked = 0;
  if (whole && launch->order == 1) picked = whole - 1;
  if (whole && launch->order == 2) picked = random_below(whole);
  return gather_at(sites[picked], lanes, count, group);
}

// Where nothing has lanes meet again after a branch but a barrier, those that took different ways may
// come to a collective one after the other: then it must not need both.
void find_diverged(Fiber** group, u32 count) {
  for (u32 i = 1; i < count; i++) {
    const Fiber &f = *group[i], &other = *group[i - 1];
    u32 block = block_of(f.request);
    if (f.at.lane / block == other.at.lane / block && f.path != other.path)
      return report("diverged-collective",
                    "simdgroup operation after a branch that other lanes took otherwise, and no "
                    "barrier between",
                    {f.request.pc}, &f);
  }
}

void meet(Fiber* lanes, u32 count) {
  Fiber* group[LANES];
  bool divergent = false;
  u32 n = gather_waiting(lanes, count, group, divergent);
  if (!n) return;
  if (n < count && !in_whole_blocks(group, n)) {
    u32 done = (u32)std::count_if(lanes, lanes + count,
                                  [](const Fiber& f) { return f.state == State::Done; });
    const Request& request = group[0]->request;
    if (divergent)
      report("divergent-collective",
             format("simdgroup operation reached by %u lanes while others wait elsewhere", n),
             {request.pc}, group[0]);
    else if (done && request.kind != Collective::Barrier)
      report("partial-collective",
             format("simdgroup operation executed after %u of %u lanes had returned", done, count),
             {request.pc}, group[0]);
  }
  if (!launch->reconverges && group[0]->request.kind != Collective::Barrier) find_diverged(group, n);
  complete_collective(group, n);
  for (u32 i = 0; i < n; i++) {
    group[i]->state = State::Ready;
    if (block_of(group[i]->request) == LANES) group[i]->path = 0;  // a block knows nothing of others
  }
}

// Adds what the lanes of each simdgroup did since the last barrier: all take as long as the busiest.
void count_operations(Fiber* threads, u32 count) {
  for (u32 first = 0; first < count; first += LANES) {
    u32 lanes = std::min(LANES, count - first);
    for (u32 kind = 0; kind < OPERATIONS; kind++) {
      u64 most = 0;
      for (Fiber* f = threads + first; f < threads + first + lanes; f++) {
        most = std::max(most, f->operations[kind]);
        f->operations[kind] = 0;
      }
      (&launch->counts.fmas)[kind] += most * lanes;
    }
  }
}

// Lets the threads that wait at a threadgroup barrier go on. False when none waits.
bool release_barrier(Fiber* threads, u32 count) {
  count_operations(threads, count);
  Fiber* first = nullptr;
  u32 done = 0;
  bool mixed = false;
  for (Fiber* f = threads; f < threads + count; f++) {
    if (f->state == State::Done) {
      done++;
      continue;
    }
    if (!first) first = f;
    mixed |= f->request.site != first->request.site;
  }
  if (!first) return false;
  if (mixed)
    report("barrier-divergence",
           "threads of one threadgroup wait at different threadgroup_barrier calls",
           {first->request.pc}, first);
  if (done)
    report("barrier-divergence",
           format("%u of %u threads returned before reaching threadgroup_barrier", done, count),
           {first->request.pc}, first);
  launch->counts.threadgroup_barriers++;
  synchronise_threadgroup(first->request.flags);
  for (Fiber* f = threads; f < threads + count; f++)
    if (f->state == State::AtBarrier) f->state = State::Ready, f->path = 0;
  return true;
}

// A simdgroup that can run: the first, the last or any one, as the launch's order says.
int pick_simdgroup(const std::vector<bool>& runnable) {
  int n = (int)runnable.size(), start = 0;
  if (launch->order == 1) start = n - 1;
  if (launch->order == 2) start = (int)random_below((u32)n);
  int step = launch->order == 1 ? n - 1 : 1;
  for (int k = 0, i = start; k < n; k++, i = (i + step) % n)
    if (runnable[i]) return i;
  return -1;
}
}  // namespace

u32 random_below(u32 bound) {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (u32)(random_state >> 16) % bound;
}

void seed_random(u32 seed) { random_state = 88172645463325252ull + seed * 7919ull; }

bool on_a_stack(u64 address) { return address - (u64)stacks < stack_count * STACK_BYTES; }

void wait_for(State state, Collective kind, u32 site, u64 pc) {
  current->state = state;
  current->request.kind = kind;
  current->request.site = site;
  current->request.pc = pc;
  yield();
}

void abandon_launch() {
  launch->aborted = 1;
  for (;;) back_to_scheduler();
}

void prepare_fibers(Fiber* threads, u32 count) {
  if (stack_count < count) {
    if (stacks) munmap(stacks, stack_count * STACK_BYTES);
    stack_count = count;
    stacks = (u8*)mmap(nullptr, count * STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  for (u32 i = 0; i < count; i++) {
    // Tops at different offsets, or the stacks of all lanes would compete for the same cache sets.
    u64* top = (u64*)(stacks + (i + 1) * STACK_BYTES - (i % 61) * 192);
    *--top = 0;
    *--top = (u64)fiber_main;
    for (int k = 0; k < 6; k++) *--top = 0;
    threads[i].stack_pointer = top;
    threads[i].state = State::Ready;
    threads[i].path = 0;
  }
}

void run_threadgroup(Fiber* threads, u32 count) {
  u32 simdgroups = (count + LANES - 1) / LANES;
  std::vector<bool> runnable(simdgroups, true);
  do {
    std::fill(runnable.begin(), runnable.end(), true);
    for (int s; (s = pick_simdgroup(runnable)) >= 0;) {
      Fiber* lanes = threads + s * LANES;
      u32 n = std::min(LANES, count - s * LANES);
      bool ready = std::any_of(lanes, lanes + n, [](auto& f) { return f.state == State::Ready; });
      if (!ready) {
        runnable[s] = false;
        continue;
      }
      run_ready_lanes(lanes, n);
      if (launch->aborted) return;
      meet(lanes, n);
    }
  } while (release_barrier(threads, count));
}
