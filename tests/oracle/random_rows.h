// Random bf16 for Memory<T>, a vector that a backend reads and writes.
#pragma once

#include <cstdint>
#include <random>

#include "engine/base/dtype.h"

namespace tiercel::test {

template <template <typename> typename Memory, typename Engine>
Memory<bf16> random_rows(Engine& engine, int64_t n, float spread = 1, float mean = 0) {
  std::normal_distribution<float> normal(mean, spread);
  Memory<bf16> rows(static_cast<size_t>(n));
  for (bf16& x : rows) x = bf16(normal(engine));
  return rows;
}

}  // namespace tiercel::test
