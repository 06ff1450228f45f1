// What compute-bound benchmarks share: one queue, and the best of many calls.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>

#include "cpu/queue.h"

namespace tiercel::bench {

// One queue at a time, so that no other arena keeps threads awake.
inline cpu::Queue& queue_of(int64_t n_threads) {
  static std::unique_ptr<cpu::Queue> queue;
  if (queue == nullptr || queue->n_workers() != n_threads) {
    queue.reset();
    queue = std::make_unique<cpu::Queue>(cpu::QueueOptions{.n_threads = static_cast<int>(n_threads)});
  }
  return *queue;
}

// Times every call and keeps the best: on a machine that others use too, an average measures them.
class Best {
 public:
  template <typename Call>
  void time(Call&& call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    seconds_ = std::min(seconds_, taken.count());
  }
  double us() const { return seconds_ * 1e6; }
  double rate(double units) const { return units / seconds_; }

 private:
  double seconds_ = 1e30;
};

}  // namespace tiercel::bench
