// Main memory on both sides of a KvStore.
#pragma once

#include <vector>

#include "cpu/ops.h"

namespace tiercel::test {

struct CpuTiers {
  using Device = cpu::Queue;
  using Host = cpu::Queue;
  template <typename T>
  using Vector = std::vector<T>;
  static constexpr bool kEmulated = false, kOverlaps = false, kRoundsWeights = false;

  explicit CpuTiers(int n_threads) : queue({.n_threads = n_threads}) {}
  cpu::Queue& device() { return queue; }
  cpu::Queue& copy() { return queue; }
  cpu::Queue& side() { return queue; }
  cpu::Queue& host() { return queue; }

  cpu::Queue queue;
};

}  // namespace tiercel::test
