// What was found, each finding once with a count.
#include "runtime.h"

#include <cstdarg>
#include <map>
#include <tuple>
#include <vector>

u64 code_start, code_end;

namespace {
struct Report {
  std::string kind, message;
  Place place;
  u64 count;
};
std::vector<Report> reports;
std::map<std::tuple<std::string, u64, u64, std::string>, size_t> known;
constexpr size_t MOST_REPORTS = 200;

std::string who(const Coordinates& c) {
  return format("threadgroup (%u,%u,%u) thread (%u,%u,%u) simdgroup %u lane %u",
                c.threadgroup_position[0], c.threadgroup_position[1], c.threadgroup_position[2],
                c.group_position[0], c.group_position[1], c.group_position[2], c.simdgroup, c.lane);
}
}  // namespace

std::string format(const char* pattern, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, pattern);
  vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

void clear_reports(u64 start) {
  reports.clear();
  known.clear();
  code_start = start;
}

void report(const char* kind, const std::string& message, Place place, const Fiber* by) {
  auto [found, fresh] = known.try_emplace({kind, place.pc, place.other_pc, place.text},
                                          reports.size());
  if (!fresh) {
    reports[found->second].count++;
  } else if (reports.size() < MOST_REPORTS) {
    reports.push_back({kind, by ? message + " [" + who(by->at) + "]" : message, place, 1});
  } else {
    known.erase(found);
  }
}

EXPORT u32 msl_report_count() { return (u32)reports.size(); }

struct ReportView {  // emulator.py has the same struct
  const char *kind, *message, *place;
  u64 pc, other_pc, count;  // pcs relative to the kernel's library, 0 if unknown
};
EXPORT ReportView msl_report(u32 i) {
  const Report& r = reports[i];
  auto relative = [](u64 pc) { return pc ? pc - code_start : 0; };
  return {r.kind.c_str(), r.message.c_str(), r.place.text.c_str(), relative(r.place.pc),
          relative(r.place.other_pc), r.count};
}
