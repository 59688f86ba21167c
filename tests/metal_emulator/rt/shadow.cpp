// Races and uninitialised reads, by happens-before: an access is ordered after an earlier one of
// another thread only if a barrier that covers its memory lies between them.
#include "runtime.h"

#include <array>
#include <vector>

namespace {
// Time steps at every barrier. An access at an earlier time than the last barrier of its threadgroup
// (or of its own simdgroup) is ordered before everything that follows.
u32 now, group_start;
std::array<u32, 2> threadgroup_sync;             // per space
std::vector<std::array<u32, 2>> simdgroup_sync;  // per simdgroup and space
u32 first_thread;                                // of the running threadgroup

// Values of Cell::writer and ::reader that are no thread.
constexpr u32 NOBODY = 0;
constexpr u32 HOST = 0x7fffffff;             // the initial value, and atomics: never a race
constexpr u32 SEVERAL_LANES = 0x80000000;    // bit: this thread and others of its simdgroup
constexpr u32 SEVERAL_SIMDGROUPS = ~0u;
constexpr u32 SEVERAL_THREADGROUPS = ~0u - 1;

bool is_crowd(u32 who) { return who == SEVERAL_SIMDGROUPS || who == SEVERAL_THREADGROUPS; }
u32 thread_of(u32 who) { return who & ~SEVERAL_LANES; }
bool in_this_group(u32 who) { return !is_crowd(who) && thread_of(who) >= first_thread; }
bool in_my_simdgroup(u32 who) {
  return in_this_group(who) && (thread_of(who) - first_thread) / LANES == current->at.simdgroup;
}

bool happened_before(u32 who, u32 time, Space space) {
  if (who == NOBODY || who == HOST || who == current->thread) return true;
  if (who == SEVERAL_THREADGROUPS || (!is_crowd(who) && thread_of(who) < first_thread)) return false;
  if (time < threadgroup_sync[space]) return true;
  return in_my_simdgroup(who) && time < simdgroup_sync[current->at.simdgroup][space];
}

std::string place(const Access& a) {
  return format("%s '%s' byte offset %llu", a.space == DEVICE ? "output" : "threadgroup variable",
                a.name, (unsigned long long)a.offset);
}

void report_race(const char* letters, const Access& a, u32 other, u32 other_pc) {
  std::string kind = std::string("race-") + letters;
  std::string by = "several threads";
  if (in_my_simdgroup(other)) kind += "-same-simdgroup";
  else if (other == SEVERAL_THREADGROUPS || (!is_crowd(other) && !in_this_group(other)))
    kind += "-cross-threadgroup";
  if (!is_crowd(other))
    by = in_this_group(other) ? format("thread %u of the threadgroup", thread_of(other) - first_thread)
                              : format("thread %u of the grid", thread_of(other) - 1);
  report(kind.c_str(),
         format("%s of %s (%u bytes) races with %s by %s", a.write ? "write" : "read",
                place(a).c_str(), a.size, letters[0] == 'R' ? "an earlier read" : "a write",
                by.c_str()),
         {a.pc, code_start + other_pc});
}

// The record of readers is kept exact for one thread and coarse for more.
u32 merge_readers(const Cell& cell, Space space) {
  u32 me = current->thread;
  if (happened_before(cell.reader, cell.read_time, space)) return me;
  if (cell.reader == SEVERAL_THREADGROUPS || (!is_crowd(cell.reader) && !in_this_group(cell.reader)))
    return SEVERAL_THREADGROUPS;
  return in_my_simdgroup(cell.reader) ? me | SEVERAL_LANES : SEVERAL_SIMDGROUPS;
}

void read(Cell& cell, const Access& a) {
  u32 me = current->thread;
  if (cell.writer == NOBODY) {
    report(a.space == DEVICE ? "uninit-output-read" : "uninit-threadgroup-read",
           "read of never-written " + place(a), {a.pc});
    cell.writer = HOST;
    cell.write_time = now;
  } else if (cell.writer != me && !happened_before(cell.writer, cell.write_time, a.space)) {
    report_race("WR", a, cell.writer, cell.write_pc);
  }
  if (cell.reader != me) cell.reader = merge_readers(cell, a.space);
  cell.read_time = now;
  cell.read_pc = (u32)(a.pc - code_start);
}

void write(Cell& cell, const Access& a) {
  u32 me = current->thread;
  if (cell.writer != me && !happened_before(cell.writer, cell.write_time, a.space))
    report_race("WW", a, cell.writer, cell.write_pc);
  if (cell.reader != me && !happened_before(cell.reader, cell.read_time, a.space))
    report_race("RW", a, cell.reader, cell.read_pc);
  cell = {me, now, (u32)(a.pc - code_start), NOBODY, 0, 0};
}

// Threadgroup memory starts anew in each threadgroup; clearing by time is cheaper than by memset.
void forget_older_groups(Cell& cell) {
  if (cell.write_time < group_start) cell.writer = NOBODY;
  if (cell.read_time < group_start) cell.reader = NOBODY;
}
}  // namespace

void begin_shadow() { now = 1; }

void begin_threadgroup(u32 first, u32 simdgroups) {
  group_start = ++now;
  first_thread = first;
  threadgroup_sync = {now, now};
  simdgroup_sync.assign(simdgroups, {now, now});
}

void synchronise_threadgroup(u32 mem_flags) {
  now++;
  if (mem_flags & MEM_DEVICE) threadgroup_sync[DEVICE] = now;
  if (mem_flags & MEM_THREADGROUP) threadgroup_sync[THREADGROUP] = now;
}

void synchronise_simdgroup(u32 simdgroup, u32 mem_flags) {
  now++;
  if (mem_flags & MEM_DEVICE) simdgroup_sync[simdgroup][DEVICE] = now;
  if (mem_flags & MEM_THREADGROUP) simdgroup_sync[simdgroup][THREADGROUP] = now;
}

void set_initialised(Cell& cell) { cell.writer = HOST; }

void touch(Cell* cells, const Access& a) {
  u64 last = (a.offset + a.size - 1) / launch->granule;
  for (u64 i = a.offset / launch->granule; i <= last; i++) {
    if (a.space == THREADGROUP) forget_older_groups(cells[i]);
    a.write ? write(cells[i], a) : read(cells[i], a);
  }
}

void touch_atomically(Cell* cells, const Access& a, bool reads) {
  u64 last = (a.offset + a.size - 1) / launch->granule;
  for (u64 i = a.offset / launch->granule; i <= last; i++) {
    if (a.space == THREADGROUP) forget_older_groups(cells[i]);
    if (reads && cells[i].writer == NOBODY)
      report("uninit-atomic", "atomic operation on never-written " + place(a), {a.pc});
    cells[i] = {HOST, now, 0, NOBODY, 0, 0};
  }
}
