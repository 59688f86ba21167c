// A launch: the grid cut into threadgroups, one after another.
#include "runtime.h"

#include <link.h>

#include <algorithm>
#include <vector>

Launch* launch = nullptr;

namespace {
// The bounds of the library that holds the kernel: its constants, and the base of pcs in reports.
int find_code(dl_phdr_info* info, size_t, void* entry) {
  u64 low = ~0ull, high = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    u64 start = info->dlpi_addr + segment.p_vaddr;
    low = std::min<u64>(low, start);
    high = std::max<u64>(high, start + segment.p_memsz);
  }
  if ((u64)entry < low || (u64)entry >= high) return 0;
  code_start = low;
  code_end = high;
  return 1;
}

// Fills the coordinates of the threads of one threadgroup; the last one of an axis may be smaller.
u32 place_threads(Fiber* threads, const u32 (&group)[3], const u32 (&full)[3],
                  const u32 (&groups)[3], u32 first_thread) {
  u32 size[3], n = 0;
  for (int d = 0; d < 3; d++) size[d] = std::min(full[d], launch->grid[d] - group[d] * full[d]);
  u32 total = size[0] * size[1] * size[2];
  for (u32 z = 0; z < size[2]; z++)
    for (u32 y = 0; y < size[1]; y++)
      for (u32 x = 0; x < size[0]; x++, n++) {
        Fiber& f = threads[n];
        u32 position[3] = {x, y, z};
        for (int d = 0; d < 3; d++) {
          f.at.group_position[d] = position[d];
          f.at.threadgroup_position[d] = group[d];
          f.at.grid_position[d] = group[d] * full[d] + position[d];
          f.at.group_size[d] = size[d];
          f.at.dispatched_group_size[d] = full[d];
          f.at.grid_size[d] = launch->grid[d];
          f.at.groups[d] = groups[d];
        }
        f.at.index = n;
        f.at.lane = n % LANES;
        f.at.simdgroup = n / LANES;
        f.at.simdgroups = (total + LANES - 1) / LANES;
        f.thread = first_thread + n;
      }
  return total;
}
}  // namespace

EXPORT void msl_launch(Launch* l) {
  launch = l;
  l->counts = {};
  l->threadgroup_bytes = l->needed_granule = l->aborted = 0;
  dl_iterate_phdr(find_code, (void*)l->entry);
  clear_reports(code_start);
  seed_random(l->seed);
  begin_memory();
  begin_shadow();
  u32 full[3], groups[3];
  for (int d = 0; d < 3; d++) {
    full[d] = std::min(l->group[d], l->grid[d]);
    groups[d] = full[d] ? (l->grid[d] + full[d] - 1) / full[d] : 0;
  }
  std::vector<Fiber> threads((size_t)full[0] * full[1] * full[2]);
  u32 first_thread = 1;
  for (u32 z = 0; z < groups[2]; z++)
    for (u32 y = 0; y < groups[1]; y++)
      for (u32 x = 0; x < groups[0] && !l->aborted; x++) {
        u32 n = place_threads(threads.data(), {x, y, z}, full, groups, first_thread);
        prepare_fibers(threads.data(), n);
        begin_threadgroup(first_thread, (n + LANES - 1) / LANES);
        forget_threadgroup_variables();
        run_threadgroup(threads.data(), n);
        first_thread += n;
        l->counts.threadgroups++;
      }
  l->counts.threads = first_thread - 1;
  if (l->checked && !l->aborted) find_unwritten_outputs();
}

// Called once per basic block, with what the block does (instrument.py).
EXPORT void __msl_operations(u32 fmas, u32 floats, u32 halves, u32 special, u32 ints,
                             u32 divisions) {
  const u32 done[OPERATIONS] = {fmas, floats, halves, special, ints, divisions};
  for (u32 kind = 0; kind < OPERATIONS; kind++) current->operations[kind] += done[kind];
}
