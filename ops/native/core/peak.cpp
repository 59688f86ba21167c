#include <algorithm>
#include <chrono>

#include "attention.h"
#include "pool.h"
#include "simd.h"

namespace natten {
namespace {

constexpr int kSums = 12;  // enough to hide the latency of a multiply-add on two units

// Returns the sums, so that nothing is optimised away.
Floats multiply_add(int64_t rounds, Floats factor) {
  Floats sum[kSums];
  for (int n = 0; n < kSums; ++n) sum[n] = splat(0.1f * n);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < kSums; ++n) sum[n] = sum[n] * factor + factor;
  }
  Floats total{};
  for (const Floats& s : sum) total += s;
  return total;
}

}  // namespace

double fma_peak() {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRounds = 400'000;
  double best = 0;
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto start = Clock::now();
    parallel_for(thread_count(), [&](int i) {
      volatile float sink = multiply_add(kRounds, splat(0.5f + 0.001f * i))[0];
      (void)sink;
    });
    const std::chrono::duration<double> seconds = Clock::now() - start;
    const double operations = 2.0 * kSums * kLanes * kRounds * thread_count();
    best = std::max(best, operations / seconds.count());
  }
  return best;
}

}  // namespace natten
