// The emulator's runtime: one fiber per Metal thread, meeting points for simdgroups and threadgroups,
// and a shadow of memory that knows who touched what last.
//
// launch.cpp runs a grid, fibers.cpp schedules the threads of a threadgroup, collectives.cpp,
// matrix.cpp and tensor.cpp carry out what a simdgroup does together, shadow.cpp judges every memory access that
// sanitizer.cpp is told of, reports.cpp keeps what was found. One launch at a time.
#pragma once

#include <cstdint>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER_PC ((u64)__builtin_return_address(0) - 1)

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i64 = int64_t;

constexpr u32 LANES = 32;

// ---- a launch: the structs that Python fills (emulator.py) -------------------------------------

// shim/msl/runtime.h has the same struct.
struct Coordinates {
  u32 grid_position[3], threadgroup_position[3], group_position[3];
  u32 group_size[3], dispatched_group_size[3], grid_size[3], groups[3];
  u32 lane, simdgroup, index, simdgroups;
};

struct Buffer {
  u64 address, size;
  const char* name;
  u32 writable, initialised;
  u32 shift;  // bytes between the address and one of 16-byte alignment
  u64 start;  // where the kernel's pointer points
};

struct Counts {
  u64 device_read_bytes, device_write_bytes;    // as issued, lane by lane
  u64 device_read_lines, device_write_lines;    // 128-byte lines, each once per threadgroup
  u64 threadgroup_read_bytes, threadgroup_write_bytes;
  u64 matrix_multiplies, tensor_multiplies, reductions, shuffles, votes, atomics;
  u64 threadgroup_barriers, simdgroup_barriers;
  u64 threads, threadgroups;
  // As a simdgroup issues them: between two threadgroup barriers, what its busiest lane does.
  u64 fmas, float_operations, half_conversions, special_operations, int_operations, int_divisions;
};
constexpr u32 OPERATIONS = 6;  // of these

using Entry = void (*)(void** arguments, const Coordinates*);
struct Launch {
  Entry entry;
  Buffer* buffers;
  u32 buffer_count, checked, granule, order, seed, threadgroup_limit, reconverges;
  u32 tensor_layout;  // of the device: which lanes hold what (tensor.cpp)
  u32 grid[3], group[3];
  // results
  Counts counts;
  u32 threadgroup_bytes, needed_granule, aborted;
};
extern Launch* launch;

// ---- threads -----------------------------------------------------------------------------------

enum class State : u8 { Ready, AtCollective, AtBarrier, Done };
enum class Collective : u8 { Reduce, Shuffle, Ballot, Multiply, Tensor, Barrier, Meeting };

// What a waiting thread asks for; the fields that its collective doesn't use are stale.
struct Request {
  Collective kind;
  u32 site;  // line | column << 20: threads meet only at the same one
  u64 pc;
  u32 op, type, count, width, flags;
  int source;
  void* value;
  const void *a, *b, *c;
  u64 result;
};

struct Fiber {
  void* stack_pointer;
  State state;
  u32 thread;  // 1 + linear index in the whole grid
  Coordinates at;
  Request request;
  u64 operations[OPERATIONS];  // since the last threadgroup barrier
  u64 path;                    // where it touched memory since it last met others
};
extern Fiber* current;  // null while the host or the scheduler runs

void run_threadgroup(Fiber* threads, u32 count);
void prepare_fibers(Fiber* threads, u32 count);
bool on_a_stack(u64 address);
void wait_for(State state, Collective kind, u32 site, u64 pc);
[[noreturn]] void abandon_launch();
u32 random_below(u32 bound);
void seed_random(u32 seed);
u32 block_of(const Request& request);
void complete_collective(Fiber** lanes, u32 count);
void multiply_matrices(Fiber** lanes, u32 count);
void multiply_tensors(Fiber** lanes, u32 count);

// ---- memory ------------------------------------------------------------------------------------

enum Space : u32 { DEVICE, THREADGROUP };
constexpr u32 MEM_DEVICE = 1, MEM_THREADGROUP = 2;  // bits of mem_flags

// Who touched one granule of memory last; thread numbers and times as in shadow.cpp, 0: nobody.
struct Cell {
  u32 writer, write_time, write_pc, reader, read_time, read_pc;
};
struct Access {
  Space space;
  const char* name;  // of the buffer or the threadgroup variable
  u64 offset;
  u32 size;
  bool write;
  u64 pc;
};
void begin_shadow();
void begin_threadgroup(u32 first_thread, u32 simdgroups);
void synchronise_threadgroup(u32 mem_flags);
void synchronise_simdgroup(u32 simdgroup, u32 mem_flags);
void touch(Cell* cells, const Access& access);
void touch_atomically(Cell* cells, const Access& access, bool reads);
void set_initialised(Cell& cell);

void begin_memory();
void forget_threadgroup_variables();
void access_memory(u64 address, u32 size, bool write, u32 alignment, u64 pc);
void check_alignment(u64 address, u32 alignment, u64 pc);
void find_unwritten_outputs();

// ---- reports -----------------------------------------------------------------------------------

struct Place {
  u64 pc = 0, other_pc = 0;  // other: the earlier access of a race
  std::string text = "";     // where known without a pc
};
void clear_reports(u64 code_start);
void report(const char* kind, const std::string& message, Place place, const Fiber* by = current);
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
extern u64 code_start, code_end;
