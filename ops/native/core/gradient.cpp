#include "gradient.h"

#include <algorithm>

namespace natten {
namespace {

// Kept between calls, one per thread that makes calls (MLX has one per stream).
std::vector<float>& kept_sums() {
  static thread_local std::vector<float> sums;
  return sums;
}

}  // namespace

BiasGradient::BiasGradient(const Problem& problem, const Arrays& arrays, const Schedule& schedule)
    : problem_(problem), schedule_(schedule), d_rpb_(arrays.d_rpb),
      entries_(bias_entries(problem)), sums_(kept_sums()) {
  if (d_rpb_) sums_.assign(size_t(1) * schedule.size() * problem.sharing() * entries_, 0.0f);
}

float* BiasGradient::of(const Task& task, int member) {
  if (!d_rpb_) return nullptr;
  return sums_.data() + (size_t(1) * task.index * problem_.sharing() + member) * entries_;
}

void BiasGradient::reduce() {
  if (!d_rpb_) return;
  std::fill(d_rpb_, d_rpb_ + size_t(1) * problem_.heads * entries_, 0.0f);
  parallel_for(problem_.kv_heads, [&](int kv_head) {
    for (int i = 0; i < schedule_.size(); ++i) {
      const Task task = schedule_.task(i);
      if (task.kv_head != kv_head) continue;
      for (int g = 0; g < problem_.sharing(); ++g) {
        const float* sums = of(task, g);
        float* out = d_rpb_ + size_t(1) * (kv_head * problem_.sharing() + g) * entries_;
        for (int e = 0; e < entries_; ++e) out[e] += sums[e];
      }
    }
  });
}

}  // namespace natten
