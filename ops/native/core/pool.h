// A small persistent pool: the calling thread and its helpers share the indices of one loop.
#pragma once

#include <functional>

namespace natten {

// Threads that run a loop, the caller included: NATTEN_ZOO_THREADS, else one per processor.
int thread_count();

// Says that a loop is about to start: to wake up takes a helper as long as a small loop.
void expect_work();

// Calls body(i) once for every i < count, in any order; returns when all are done. Each thread
// begins with a range of its own, the same one in equal loops. A loop that starts while another one
// runs (streams have threads of their own) runs on its caller alone.
void parallel_for(int count, const std::function<void(int)>& body);

}  // namespace natten
