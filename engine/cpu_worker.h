// The CPU as a worker beside a device (offload/host_worker.h).
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/ops.h"
#include "offload/host_worker.h"

namespace tiercel {

class CpuWorker final : public HostWorker {
 public:
  // n_threads: 0: one per core.
  CpuWorker(int n_threads, int64_t n_heads, int64_t head_dim)
      : queue_(cpu::QueueOptions{.n_threads = n_threads}),
        workspace_(static_cast<size_t>(std::max(decode_workspace_floats(n_heads, head_dim),
                                                weighted_values_workspace_floats(n_heads, head_dim)))) {}

  void attend_decode(DecodeAttendParams params) override {
    params.workspace = workspace_.data();
    cpu::attend_decode(queue_, params);
  }
  void weighted_values(WeightedValuesParams params) override {
    params.workspace = workspace_.data();
    cpu::weighted_values(queue_, params);
  }

 private:
  cpu::Queue queue_;
  std::vector<float> workspace_;
};

}  // namespace tiercel
