// Where memory lies, and what each access may do there: bounds, alignment, constness, traffic.
#include "runtime.h"
#include "scalar.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {
// Each buffer and each threadgroup variable lies alone in a slot of a power-of-two size, far from
// its neighbours: an address names its slot by a shift, and an overrun stays in the slot it left.
constexpr u64 BUFFER_LEAD = 1 << 20, VARIABLE_LEAD = 32 << 10;
constexpr u32 VARIABLE_SLOT_BITS = 17, MOST_VARIABLES = 256, LARGEST_VARIABLE = 64 << 10;
constexpr u32 LINE = 128;

u8 *arena, *variable_memory;
u64 arena_bytes, capacity;
u32 slot_bits;

struct Lines {  // per 128-byte line of a buffer: the last threadgroup that read and that wrote it
  std::vector<u32> read, written;
};
std::vector<Lines> lines;
std::vector<std::vector<Cell>> buffer_cells;

struct Variable {
  u32 size, threadgroup;  // threadgroup: 1 + the last one that declared it
  const char* name;
  u8* data;
  std::vector<Cell> cells;
};
Variable variables[MOST_VARIABLES];
u32 threadgroup_serial, used_threadgroup_bytes;

u8* reserve(u64 bytes) {
  return (u8*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

void out_of_bounds(u32 size, bool write, u64 pc, const std::string& where) {
  report("out-of-bounds",
         format("%s of %u bytes at %s", write ? "write" : "read", size, where.c_str()), {pc});
}

// Ends the launch: the CPU might not survive the access.
void misaligned(u32 alignment, u64 offset, const char* what, const char* name, u64 pc) {
  report("misaligned",
         format("access that needs %u-byte alignment at byte offset %llu of %s '%s'", alignment,
                (unsigned long long)offset, what, name),
         {pc});
  abandon_launch();
}

void count_line(std::vector<u32>& last, u64 offset, u32 size, u64& counter) {
  for (u64 i = offset / LINE; i <= (offset + size - 1) / LINE; i++)
    if (last[i] != threadgroup_serial) {
      last[i] = threadgroup_serial;
      counter++;
    }
}

void count_device(u32 index, u64 offset, u32 size, bool write) {
  Counts& counts = launch->counts;
  (write ? counts.device_write_bytes : counts.device_read_bytes) += size;
  if (write) count_line(lines[index].written, offset, size, counts.device_write_lines);
  else count_line(lines[index].read, offset, size, counts.device_read_lines);
}

// Shadow cells cover `granule` bytes: a finer access starts the launch over with a finer granule.
void require_granule(u64 offset, u32 size) {
  u64 finest = (offset | size) & -(offset | size);
  if (finest < launch->granule) {
    launch->needed_granule = (u32)finest;
    abandon_launch();
  }
}

void access_buffer(u64 address, u32 size, bool write, u32 alignment, u64 pc) {
  u32 index = std::min((u32)((address - (u64)arena) >> slot_bits), launch->buffer_count - 1);
  const Buffer& b = launch->buffers[index];
  u64 offset = address - b.address;
  if (offset >= b.size || offset + size > b.size)
    return out_of_bounds(size, write, pc,
                         format("byte offset %lld of buffer '%s' (%llu bytes)", (long long)offset,
                                b.name, (unsigned long long)b.size));
  if (address % alignment) misaligned(alignment, offset, "buffer", b.name, pc);
  count_device(index, offset, size, write);
  if (b.writable) {
    require_granule(offset, size);
    touch(buffer_cells[index].data(), {DEVICE, b.name, offset, size, write, pc});
  } else if (write) {
    report("write-to-const", format("write to the input '%s'", b.name), {pc});
  }
}

void access_variable(u64 in_memory, u32 size, bool write, u32 alignment, u64 pc) {
  Variable& v = variables[in_memory >> VARIABLE_SLOT_BITS];
  u64 offset = (u64)variable_memory + in_memory - (u64)v.data;
  if (!v.data || offset >= v.size || offset + size > v.size)
    return out_of_bounds(size, write, pc,
                         format("byte offset %lld of threadgroup variable '%s' (%u bytes)",
                                (long long)offset, v.name ? v.name : "?", v.size));
  if ((u64)(v.data + offset) % alignment)
    misaligned(alignment, offset, "threadgroup variable", v.name, pc);
  Counts& counts = launch->counts;
  (write ? counts.threadgroup_write_bytes : counts.threadgroup_read_bytes) += size;
  require_granule(offset, size);
  touch(v.cells.data(), {THREADGROUP, v.name, offset, size, write, pc});
}

constexpr u64 VARIABLE_BYTES = (u64)MOST_VARIABLES << VARIABLE_SLOT_BITS;
}  // namespace

void access_memory(u64 address, u32 size, bool write, u32 alignment, u64 pc) {
  if (!current) return;  // the host
  current->path = current->path * 31 + pc;
  if (address - (u64)arena < arena_bytes)
    return access_buffer(address, size, write, alignment, pc);
  if (address - (u64)variable_memory < VARIABLE_BYTES)
    return access_variable(address - (u64)variable_memory, size, write, alignment, pc);
  bool coordinates = address - (u64)&current->at < sizeof(Coordinates);
  bool constant = address >= code_start && address < code_end;
  if (coordinates || constant || on_a_stack(address)) return;
  out_of_bounds(size, write, pc, format("wild address 0x%llx", (unsigned long long)address));
  abandon_launch();
}

void check_alignment(u64 address, u32 alignment, u64 pc) {
  bool shared = address - (u64)arena < arena_bytes ||
                address - (u64)variable_memory < VARIABLE_BYTES;
  if (!current || !shared || address % alignment == 0) return;
  report("misaligned", format("copy that needs %u-byte alignment", alignment), {pc});
  abandon_launch();
}

void begin_memory() {
  if (!variable_memory) variable_memory = reserve(VARIABLE_BYTES);
  threadgroup_serial = 0;
  for (Variable& v : variables) v.threadgroup = 0, v.size = 0, v.cells.clear();
  lines.assign(launch->buffer_count, {});
  buffer_cells.assign(launch->buffer_count, {});
  if (!launch->checked) return;
  for (u32 i = 0; i < launch->buffer_count; i++) {
    const Buffer& b = launch->buffers[i];
    lines[i].read.assign(b.size / LINE + 1, 0);
    lines[i].written.assign(b.size / LINE + 1, 0);
    if (!b.writable) continue;
    buffer_cells[i].assign(b.size / launch->granule + 1, {});
    if (b.initialised)
      for (Cell& cell : buffer_cells[i]) set_initialised(cell);
  }
}

void forget_threadgroup_variables() {
  threadgroup_serial++;
  used_threadgroup_bytes = 0;
}

void find_unwritten_outputs() {
  for (u32 i = 0; i < launch->buffer_count; i++) {
    const Buffer& b = launch->buffers[i];
    if (!b.writable || b.initialised) continue;
    u64 cells = b.size / launch->granule, missing = 0, first = 0;
    for (u64 k = cells; k-- > 0;)
      if (!buffer_cells[i][k].writer) missing++, first = k;
    if (missing)
      report("unwritten-output",
             format("%llu of %llu bytes of output '%s' were never written, from byte offset %llu",
                    (unsigned long long)(missing * launch->granule), (unsigned long long)b.size,
                    b.name, (unsigned long long)(first * launch->granule)),
             {0, 0, b.name}, nullptr);
  }
}

// Storage of a `threadgroup T name[N];` statement, the same for all threads of a threadgroup. A GPU may
// lay variables back to back: each has the alignment that it was declared with, and none better.
EXPORT void* __msl_threadgroup_variable(u32 id, u32 bytes, u32 alignment, const char* name) {
  Variable& v = variables[id % MOST_VARIABLES];
  if (v.threadgroup == threadgroup_serial) return v.data;
  if (id >= MOST_VARIABLES || bytes > LARGEST_VARIABLE) {
    report("threadgroup-memory", format("threadgroup variable '%s' has %u bytes", name, bytes),
           {CALLER_PC});
    abandon_launch();
  }
  v.threadgroup = threadgroup_serial;
  v.size = bytes;
  v.name = name;
  v.data = variable_memory + ((u64)id << VARIABLE_SLOT_BITS) + VARIABLE_LEAD + alignment;
  memset(v.data, 0xff, bytes);  // NaN in every float type
  if (launch->checked) v.cells.resize(bytes / launch->granule + 1);
  used_threadgroup_bytes = (used_threadgroup_bytes + alignment - 1) / alignment * alignment + bytes;
  if (used_threadgroup_bytes > launch->threadgroup_limit)
    report("threadgroup-memory",
           format("the kernel uses %u bytes of threadgroup memory (limit %u)",
                  used_threadgroup_bytes, launch->threadgroup_limit),
           {CALLER_PC});
  if (used_threadgroup_bytes > launch->threadgroup_bytes)
    launch->threadgroup_bytes = used_threadgroup_bytes;
  return v.data;
}

// Gives every buffer its address, before Python copies the data there.
EXPORT void msl_place_buffers(Buffer* buffers, u32 count) {
  u64 largest = 0;
  for (u32 i = 0; i < count; i++)
    if (buffers[i].size > largest) largest = buffers[i].size;
  slot_bits = 22;
  while ((1ull << slot_bits) < largest + 2 * BUFFER_LEAD) slot_bits++;
  arena_bytes = (u64)(count + 1) << slot_bits;
  if (arena_bytes > capacity) {
    if (arena) munmap(arena, capacity);
    arena = reserve(capacity = arena_bytes);
  }
  for (u32 i = 0; i < count; i++)
    buffers[i].address = (u64)arena + ((u64)i << slot_bits) + BUFFER_LEAD + buffers[i].shift;
}

// ---- atomics -----------------------------------------------------------------------------------

namespace {
enum AtomicOp : u32 { LOAD, EXCHANGE, ADD, SUB, MIN, MAX, AND, OR, XOR, COMPARE_EXCHANGE };

u32 atomic_size(u32 type) { return type == U64 ? 8 : type == BOOL ? 1 : 4; }

bool check_atomic(u64 address, u32 size, u32 op, u64 pc) {
  bool reads = op != EXCHANGE && op != LOAD, writes = op != LOAD;
  launch->counts.atomics++;
  u64 in_arena = address - (u64)arena, in_memory = address - (u64)variable_memory;
  if (in_arena < arena_bytes) {
    u32 i = std::min((u32)(in_arena >> slot_bits), launch->buffer_count - 1);
    const Buffer& b = launch->buffers[i];
    u64 offset = address - b.address;
    if (offset + size <= b.size) {
      if (writes && !b.writable) report("write-to-const", "atomic on an input", {pc});
      if (!launch->checked) return true;
      count_device(i, offset, size, writes);
      if (!b.writable) return true;
      require_granule(offset, size);
      touch_atomically(buffer_cells[i].data(), {DEVICE, b.name, offset, size, writes, pc}, reads);
      return true;
    }
  } else if (in_memory < VARIABLE_BYTES) {
    Variable& v = variables[in_memory >> VARIABLE_SLOT_BITS];
    u64 offset = address - (u64)v.data;
    if (v.data && offset + size <= v.size) {
      if (!launch->checked) return true;
      require_granule(offset, size);
      touch_atomically(v.cells.data(), {THREADGROUP, v.name, offset, size, writes, pc}, reads);
      return true;
    }
  }
  out_of_bounds(size, writes, pc, "an address outside every buffer (atomic)");
  return false;
}

float to_float(u64 bits) { return __builtin_bit_cast(float, (u32)bits); }
u64 to_bits(float x) { return __builtin_bit_cast(u32, x); }

u64 apply(u32 op, u32 type, u64 old, u64 value, u64 expected) {
  bool below = type == I32 ? (int32_t)value < (int32_t)old : value < old;
  switch (op) {
    case EXCHANGE: return value;
    case ADD: return type == F32 ? to_bits(to_float(old) + to_float(value)) : old + value;
    case SUB: return type == F32 ? to_bits(to_float(old) - to_float(value)) : old - value;
    case MIN: return below ? value : old;
    case MAX: return below ? old : value;
    case AND: return old & value;
    case OR: return old | value;
    case XOR: return old ^ value;
    case COMPARE_EXCHANGE: return old == expected ? value : old;
    default: return old;
  }
}
}  // namespace

EXPORT u64 __msl_atomic(u64 address, u32 op, u32 type, u64 value, u64 expected) {
  u32 size = atomic_size(type);
  if (!check_atomic(address, size, op, CALLER_PC)) return 0;
  u64 old = 0;
  memcpy(&old, (void*)address, size);
  u64 fresh = apply(op, type, old, value, expected);
  memcpy((void*)address, &fresh, size);
  return old;
}
