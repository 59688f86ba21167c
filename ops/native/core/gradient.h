// What the gradients of attention, of qk and of av share: sums of weighted rows per lane.
#pragma once

#include <functional>

#include "task.h"

namespace natten {

// The gradient of rpb, summed over tasks in their order.
class BiasGradient {
 public:
  BiasGradient(const Problem& problem, const Arrays& arrays, const Schedule& schedule);

  // The sums of one task and one of the heads that share its key head; they start at 0.
  float* of(const Task& task, int member);
  void reduce();
  explicit operator bool() const { return d_rpb_ != nullptr; }

 private:
  const Problem& problem_;
  const Schedule& schedule_;
  float* d_rpb_;
  int entries_;
  std::vector<float>& sums_;
};

}  // namespace natten
